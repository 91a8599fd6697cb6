"""`python -m deploy.render --config NAME|PATH --target aws|gcp|local|kuberay|slurm|skypilot|compose [--out DIR]
[--gpu NAME] [--spot] [--run NAME] [--set name=value ...] [section.key=value ...]`: the files that start a cluster of
the size that a configuration needs, and the run on it.

Asks no network and starts nothing. Without --out the files go to stdout.
"""

import importlib.metadata
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from deploy import sizing
from deploy.hardware import GIB, Machine
from deploy.targets import REPLACE, TARGETS, Target
from t2ir1_ray import config as configuration
from t2ir1_ray.config import SHIPPED, Config
from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting.capacity import SLACK
from t2ir1_ray.storage import write_whole

PLACE_TIMEOUT_S = 1800
"""How long a run waits for its nodes: clouds take minutes to give them."""


@dataclass(frozen=True)
class Request:
    """What is to be rendered. config_file: None for a configuration that ships with the package."""

    config: Config
    config_name: str
    config_file: Path | None
    overrides: Sequence[str] = ()
    site: Mapping[str, str] | None = None
    gpu: str | None = None
    spot: bool = False
    run: str = ""


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m deploy.render", description="Write the files of a cluster for a configuration.")
    parser.add_argument("--config", default="shapes", help="a shipped name (janus_pro_7b, ...) or a YAML file")
    parser.add_argument("--target", required=True, choices=list(TARGETS))
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write into; default: stdout")
    parser.add_argument("--gpu", metavar="NAME", help="GPU type to take instead of the first that is large enough")
    parser.add_argument("--spot", action="store_true", help="workers that may be taken away (aws, gcp, skypilot)")
    parser.add_argument(
        "--run", default="", metavar="NAME", help="name of the run folder; default: the configuration's"
    )
    parser.add_argument("--set", action="append", default=[], metavar="name=value", help="what only you know")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    request = Request(
        configuration.load(options.config, options.overrides),
        options.config,
        path if (path := Path(options.config)).is_file() else None,
        options.overrides,
        _site(options.target, options.set),
        options.gpu,
        options.spot,
        options.run,
    )
    files, notes = render(request, options.target)
    for name, text in files.items():
        if options.out is None:
            print(f"# --- {name}\n{text}", end="")
        else:
            options.out.mkdir(parents=True, exist_ok=True)
            write_whole(options.out / name, text)
            print(f"wrote {options.out / name}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def render(request: Request, target_name: str) -> tuple[dict[str, str], list[str]]:
    """(text of every file by its name, remarks for the user). Raises UserError for what cannot be placed."""
    target = TARGETS[target_name]
    site = dict(target.site) | dict(request.site or {})
    of = sizing.needs(request.config)
    machine, groups = _groups(of, target_name, target, request.gpu, site)
    _check_site(site, machine, groups)
    run = request.run or Path(request.config_name).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", run):
        raise UserError(f"--run {run[:80]!r}: at most 63 letters, digits and ._-")
    values = {
        "of": of,
        "head": sizing.head(of),
        "groups": groups,
        "least_gpu_gb": of.gpu_gb / (1 - SLACK),
        "machine": machine,
        "head_machine": _head_machine(of, target),
        "site": site,
        "spot": request.spot,
        "run": run,
        "label": re.sub("[^a-z0-9]+", "-", f"t2ir1-{run}".lower()).strip("-")[:47].rstrip("-"),
        "arguments": _arguments(request, target),
        "folder_set": request.config.cluster.folder is not None,
        "config_text": request.config_file.read_text() if request.config_file else None,
        "config_path": target.config,
        "ray_version": importlib.metadata.version("ray"),
    }
    files = {name: _template(source, values | {"file": name}) for name, source in target.files.items()}
    if request.config_file and target_name != "kuberay":  # there it is a ConfigMap
        files["config.yaml"] = values["config_text"]
    return files, list(_notes(request, of, files))


def _groups(
    of: sizing.Needs, name: str, target: Target, gpu: str | None, site: Mapping[str, str]
) -> tuple[Machine, list[sizing.Group]]:
    """(the machine type that the nodes have, groups of equal nodes)."""
    machine, workers = sizing.machines(of, target.catalogue, name, gpu)
    if name == "kuberay" and site["pods"] == "role":
        return machine, sizing.pods(of)
    if name == "compose":
        if workers.count > 1:
            raise UserError(f"placement: the configuration takes {workers.count} machines, compose is for one")
        return machine, sizing.containers(of)
    return machine, [workers]


def _head_machine(of: sizing.Needs, target: Target) -> Machine:
    """The smallest machine without GPUs that holds the driver."""
    return next(m for m in target.catalogue if not m.gpus and m.memory_gb >= sizing.head(of).memory_gb)


def _arguments(request: Request, target: Target) -> list[str]:
    """What `t2ir1-run RUN` gets behind the run folder, as words."""
    config = target.config if request.config_file else request.config_name
    waits = any(override.startswith("cluster.place_timeout_s=") for override in request.overrides)
    words = ["--config", config, *request.overrides]
    words += [] if waits else [f"cluster.place_timeout_s={PLACE_TIMEOUT_S}"]
    words += [] if request.config.cluster.folder or not target.folder else [f"cluster.folder={target.folder}"]
    if bad := next((word for word in words if not word.isprintable()), None):
        raise UserError(f"{bad[:60]!r}: holds line breaks: put it into the configuration's file")
    return words


def _template(name: str, values: Mapping[str, object]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda path: (resources.files("deploy") / "templates" / path).read_text()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "yaml": lambda value: json.dumps(
            value, ensure_ascii=False
        ),  # a YAML scalar or flow sequence, whatever it holds
        "shell": shlex.join,
        "gib": lambda gb: -int(-gb // GIB),
        "bytes": lambda gb: int(gb * 1e9),
    }
    return environment.get_template(name).render(values)


def _site(target: str, settings: Sequence[str]) -> dict[str, str]:
    """Checked `--set name=value`: what is allowed in a value is harmless in YAML and in a shell."""
    known, site = TARGETS[target].site, {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or name not in known:
            raise UserError(f"--set {setting[:80]}: {target} knows {', '.join(f'{key}=...' for key in known)}")
        if not re.fullmatch(r"[A-Za-z0-9._/:@=+,~%-]*", value):
            raise UserError(f"--set {name}={value[:80]!r}: letters, digits and ._/:@=+,~%- only")
        site[name] = value
    return site


def _check_site(site: Mapping[str, str], machine: Machine, groups: Sequence[sizing.Group]) -> None:
    """Is what the user knows enough for the configuration?"""
    ips = site.get("worker_ips")
    if ips is not None and len(ips.split(",")) < groups[0].count:
        raise UserError(f"--set worker_ips={ips}: the configuration needs {groups[0].count} workers of {machine.name}")
    if site.get("pods") not in (None, "role", "node"):
        raise UserError(f"--set pods={site['pods']}: role (one pod per role's size) or node (as few as possible)")
    selector = site.get("selector")
    if selector not in (None, "memory", "gke", "eks"):
        raise UserError(f"--set selector={selector}: memory (NVIDIA's node labels), gke or eks")
    if selector in ("gke", "eks") and machine.gpu and getattr(machine.gpu, selector) is None:
        raise UserError(f"--set selector={selector}: it offers no {machine.gpu.name}: name another with --gpu")


def _notes(request: Request, of: sizing.Needs, files: Mapping[str, str]) -> Iterator[str]:
    config = request.config
    yield from (f"{role}: not here to be measured, its memory is left out" for role in of.unknown)
    paths = {
        "policy.path": config.policy.path,
        "data.prompts": config.data.prompts,
        "eval.prompts": config.eval.prompts,
    }
    paths |= {f"experts.{name}.path": expert.path for name, expert in config.experts.items()}
    for key, path in paths.items():
        if path and path.startswith(("/", "~")) and not path.startswith(("/shared/", str(SHIPPED))):
            yield f"{key}={path}: do all nodes see it? Relative paths begin in /shared/models (Slurm: in the checkout)"
    for name, text in files.items():
        if left := sorted(set(re.findall(rf"[\w./:-]*{REPLACE}[\w./:-]*", text))):
            yield f"{name}: still to be replaced: {', '.join(left)}: give them with --set"


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
