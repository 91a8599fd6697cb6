"""Does a configuration fit: actors on the nodes, roles in memory, a run on the disk? Findings for the doctor."""

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.placement import plan, roles
from t2ir1_ray.config import Config
from t2ir1_ray.fitting.inventory import GB
from t2ir1_ray.fitting.memory import PROCESS_GB, RoleMemory, Shapes, amount, published_bytes, trained_parameters

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
    left = [[node.cpus + 1e-6, node.gpus] for node in nodes]
    for bundle in sorted(bundles, key=lambda b: (-b.get("GPU", 0), -b.get("CPU", 0))):
        need = bundle.get("CPU", 0), bundle.get("GPU", 0)
        room = next((free for free in left if free[0] >= need[0] and free[1] >= need[1]), None)
        if room is None:
            text = f"placement: {asked}, but no node has {need[0]:g} CPUs and {need[1]:g} GPUs left for one: {mend}"
            yield Check("FAIL", text)
            return
        room[0] -= need[0]
        room[1] -= need[1]
    yield Check("ok", f"placement: {asked}, there are {have_cpus:g} and {have_gpus}")


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


def storage(config: Config, shapes: Shapes) -> Iterator[Check]:
    """Disk for checkpoints and dumps, and the object store for policy versions and images."""
    journal, rollout = config.journal, config.rollout
    whole = shapes.language + shapes.generation + shapes.understanding + shapes.vq
    saves = max(1, config.train.steps // journal.save_every) if journal.save_every else int(journal.save_last)
    checkpoint = (2 * whole + 14 * trained_parameters(config, shapes)) / GB if saves else 0.0
    kept = min(saves, journal.keep_last + 1 if journal.keep_last else saves)  # + 1: the best
    kept += saves > 1  # the one that is being written
    image = 3 * shapes.image_side**2 / GB
    images = config.data.prompts_per_step * rollout.group_size * image
    dumps = 0.6 * images * (config.train.steps // journal.dump_every) if journal.dump_every else 0  # PNG: about 60 %
    yield _disk(Path(journal.root).expanduser().absolute(), kept, checkpoint, dumps)
    if cluster_address(config):
        return
    versions_gb = 2 * published_bytes(config, shapes) / GB if rollout.weight_transfer == "object_store" else 0
    need = versions_gb + 2 * images
    store = config.cluster.object_store_gb * 2**30 / GB if config.cluster.object_store_gb else _default_store()
    text = f"object store: {amount(store)}, two policy versions and two steps' images take {amount(need)}"
    yield Check("ok", text) if need < store else Check("warn", f"{text}: raise cluster.object_store_gb, or Ray spills")


def _disk(root: Path, kept: int, checkpoint: float, dumps: float) -> Check:
    """Room for `kept` checkpoints of so many GB each, and for dumps of so many GB together."""
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
    if free < checkpoint:
        mend = "choose another journal.root, or set learner.lora_rank"
        return Check("FAIL", f"{found}, one checkpoint takes {amount(checkpoint)}: {mend}")
    text = f"{found}, a whole run takes {kept} checkpoints of {amount(checkpoint)} and dumps of {amount(dumps)}"
    if free < kept * checkpoint + dumps:
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
