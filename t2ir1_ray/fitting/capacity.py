"""Does a configuration fit: actors on the nodes, roles in memory, a run on the disk? Findings for the doctor."""

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.placement import LEARNER, fitting_plan, homeless, plan, roles
from t2ir1_ray.config import Config
from t2ir1_ray.fitting.inventory import GB
from t2ir1_ray.fitting.memory import PROCESS_GB, RoleMemory, Shapes, amount, checkpoint_bytes, published_bytes

SLACK = 0.05
"""Of a GPU's memory: an estimate is no promise."""


@dataclass(frozen=True)
class Check:
    """One finding. text: what was found, and after a colon what to do about it."""

    level: Literal["ok", "warn", "FAIL"]
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.text}"


@dataclass(frozen=True)
class Node:
    """One machine. gpu_gb: (total, free) of each GPU as far as it can be seen from here. card: what its GPUs are."""

    cpus: float
    gpus: int
    gpu_gb: tuple[tuple[float, float], ...] = ()
    name: str = ""
    card: str = ""


def cluster_address(config: Config) -> str | None:
    """Of the cluster that a run joins; None: it starts a local one."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


def placement(config: Config, nodes: Sequence[Node]) -> Iterator[Check]:
    """Can every actor be placed at once?"""
    if not nodes:
        return
    bundles = plan(roles(config)).bundles
    cpus, gpus = (math.fsum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU"))
    have_cpus, have_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    asked = f"all actors ask for {cpus:g} CPUs and {gpus:g} GPUs"
    mend = "lower num_gpus, num_cpus, actors, ranks or replicas (fractions share a GPU), or add nodes"
    if gpus > have_gpus or cpus > have_cpus + 1e-6:
        yield Check("FAIL", f"placement: {asked}, there are {have_cpus:g} and {have_gpus}: {mend}")
        return
    rooms = [(node.cpus, node.gpus) for node in nodes]
    found = fitting_plan(roles(config), rooms)
    if found is None:
        one = homeless(bundles, rooms)
        need = f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs"
        yield Check("FAIL", f"placement: {asked}, but no node has {need} left for one: {mend}")
        return
    groups = len({bundle for (role, _), bundle in found.bundle_of.items() if role == LEARNER})
    split = f"; learner ranks are in {groups} groups, on a node each" if groups > 1 else ""
    yield Check("ok", f"placement: {asked}, there are {have_cpus:g} and {have_gpus}{split}")


def gpu_needs(config: Config, rows: Sequence[RoleMemory]) -> dict[tuple[str, ...], tuple[float, float]]:
    """GB that one GPU needs by the roles that share it: (surely, with the longest prompts and plans)."""
    by_role = {row.role: row for row in rows}
    shares = defaultdict(list)
    for (name, _), bundle in plan(roles(config)).bundle_of.items():
        if by_role[name].gpus:
            shares[bundle].append(by_role[name])
    needs: dict[tuple[str, ...], tuple[float, float]] = {}
    for members in shares.values():
        names = tuple(dict.fromkeys(row.role for row in members))
        split = max(1.0, *(row.gpus for row in members))
        sure, total = sum(row.sure for row in members) / split, sum(row.total for row in members) / split
        before = needs.get(names, (0, 0))
        needs[names] = max(before[0], sure), max(before[1], total)
    return needs


def gpu_memory(config: Config, rows: Sequence[RoleMemory], nodes: Sequence[Node]) -> Iterator[Check]:
    """What shares a GPU, against the smallest GPU that can be seen."""
    by_role = {row.role: row for row in rows}
    sizes = [total for node in nodes for total, _ in node.gpu_gb]
    for names, (sure, total) in gpu_needs(config, rows).items():
        unknown = [row for row in names if not by_role[row].known]
        text = f"memory: a GPU with {' + '.join(names)} needs {sure:.0f} GB"
        text += f", {total:.0f} with the longest prompts and plans" if total > sure + 0.5 else ""
        text += " beside its batches" if any(_batch_unknown(by_role[name]) for name in names) else ""
        text += f", without {', '.join(unknown)}, not here to be measured" if unknown else ""
        if not sizes:
            yield Check("ok", text)
        elif sure > min(sizes):
            yield Check("FAIL", f"{text}, the smallest has {min(sizes):.0f}: {_memory_mend(names)}")
        elif total > (1 - SLACK) * min(sizes):
            yield Check("warn", f"{text}, the smallest has {min(sizes):.0f}: {_memory_mend(names)}")
        else:
            yield Check("ok", f"{text}, the smallest has {min(sizes):.0f}")


def host_memory(rows: Sequence[RoleMemory]) -> Iterator[Check]:
    """The actors without a GPU and the driver, against the memory of this machine."""
    on_cpu = [row for row in rows if not row.gpus]
    if not on_cpu:
        return
    need, have = PROCESS_GB + sum(row.actors * row.total for row in on_cpu), _host_memory() / GB
    text = f"memory: actors on CPUs and the driver take {amount(need)}, this machine has {amount(have)}"
    if need > 0.9 * have:
        yield Check("warn", f"{text}: drop experts, or lower learner.tokens_per_batch and rollout.kv_cache_gb")
    else:
        yield Check("ok", text)


@dataclass(frozen=True)
class RunSize:
    """What a run leaves on the disk: so many checkpoints at one time, each of so many GB, and dumps of samples."""

    checkpoints: int
    checkpoint_gb: float
    dumps_gb: float


def run_size(config: Config, shapes: Shapes) -> RunSize:
    journal = config.journal
    saves = max(1, config.train.steps // journal.save_every) if journal.save_every else int(journal.save_last)
    checkpoint = checkpoint_bytes(config, shapes) / GB if saves else 0.0
    kept = min(saves, journal.keep_last + 1 if journal.keep_last else saves)  # + 1: the best
    kept += saves > 1  # the one that is being written
    dumps = config.train.steps // journal.dump_every if journal.dump_every else 0
    return RunSize(kept, checkpoint, 0.6 * images_gb(config, shapes) * dumps)  # PNG: about 60 %


def images_gb(config: Config, shapes: Shapes) -> float:
    """The images of one step, as they lie in the object store."""
    return config.data.prompts_per_step * config.rollout.group_size * 3 * shapes.image_side**2 / GB


def store_gb(config: Config, shapes: Shapes) -> float:
    """What the object store holds: two policy versions and two steps' images."""
    versions = 2 * published_bytes(config, shapes) / GB if config.rollout.weight_transfer == "object_store" else 0
    return versions + 2 * images_gb(config, shapes)


def storage(config: Config, shapes: Shapes) -> Iterator[Check]:
    """Disk for checkpoints and dumps, and the object store for policy versions and images."""
    yield _disk(Path(config.journal.root).expanduser().absolute(), run_size(config, shapes))
    if cluster_address(config):
        return
    need = store_gb(config, shapes)
    store = config.cluster.object_store_gb * 2**30 / GB if config.cluster.object_store_gb else _default_store()
    text = f"object store: {amount(store)}, two policy versions and two steps' images take {amount(need)}"
    yield Check("ok", text) if need < store else Check("warn", f"{text}: raise cluster.object_store_gb, or Ray spills")


def _disk(root: Path, run: RunSize) -> Check:
    """Room for a whole run?"""
    try:
        there = next(parent for parent in (root, *root.parents) if parent.exists())
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return Check("FAIL", f"journal.root: {str(root)[:200]}: {error.strerror}: choose another folder")
    if not there.is_dir():
        return Check("FAIL", f"journal.root: {there} is no folder: choose another one")
    if not os.access(there, os.W_OK):
        return Check("FAIL", f"journal.root: {there} cannot be written: choose another folder")
    free = shutil.disk_usage(there).free / GB
    found = f"journal.root: {amount(free)} free on {there}"
    if free < run.checkpoint_gb:
        mend = "choose another journal.root, or set learner.lora_rank"
        return Check("FAIL", f"{found}, one checkpoint takes {amount(run.checkpoint_gb)}: {mend}")
    text = f"{found}, a whole run takes {run.checkpoints} checkpoints of {amount(run.checkpoint_gb)}"
    text += f" and dumps of {amount(run.dumps_gb)}"
    if free < run.checkpoints * run.checkpoint_gb + run.dumps_gb:
        mend = "choose another journal.root, lower journal.keep_last or raise journal.dump_every"
        return Check("warn", f"{text}: {mend}")
    return Check("ok", text)


def _batch_unknown(row: RoleMemory) -> bool:
    return row.role.startswith("expert-") and all(part.name != "batch" for part in row.parts)


def _memory_mend(names: Sequence[str]) -> str:
    if "learner" in names:
        return "raise learner.ranks with zero_stage=3, set learner.lora_rank, or lower learner.tokens_per_batch"
    if "rollout" in names:
        return "lower rollout.prompts_per_call, rollout.kv_cache_gb or policy.max_plan_tokens"
    return "raise num_gpus so that fewer share a GPU, or lower the experts' batch_size or reference.tokens_per_batch"


def _default_store() -> float:
    """Ray's default object store: 30 % of memory, no more than /dev/shm has."""
    shared = Path("/dev/shm")
    return min(0.3 * _host_memory(), shutil.disk_usage(shared).free if shared.is_dir() else math.inf, 200e9) / GB


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
