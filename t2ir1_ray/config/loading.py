"""Reading a configuration: defaults, one YAML file, dotted `key=value` overrides, merged and type-checked by OmegaConf.

`load` is the only door: what it returns is complete and valid, so that nothing behind it checks again.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from t2ir1_ray.config.portable import SHIPPED, portable
from t2ir1_ray.config.rules import check, leaves, one_line
from t2ir1_ray.config.sections import Config
from t2ir1_ray.errors import UserError
from t2ir1_ray.storage import write_whole

FILE = "config.yaml"
"""Name of the configuration in a run folder."""
OmegaConf.register_resolver("shipped", lambda name: str(SHIPPED / name), replace=True)
INTERPOLATION = re.compile(r"\$\{(shipped:[\w.-]+|[\w.]+)\}")
"""All that `${...}` can say: OmegaConf's own resolvers read the environment, and a file must not."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
MAX_FILE_BYTES = 1 << 20


def load(name_or_path: str = "shapes", overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file (a shipped name such as `shapes`, or a path), then `a.b=value` overrides.

    Raises UserError with one line: unknown key (and the nearest known one), wrong type, or a value out of range.
    """
    merged = _merge(OmegaConf.structured(Config), _read_yaml(name_or_path), name_or_path)
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise UserError(f"{one_line(override)}: overrides have the form section.key=value")
        with _one_line(f"{one_line(override)}: not a YAML value"):
            update = OmegaConf.from_dotlist([override])
        merged = _merge(merged, update, override)
    with _one_line(one_line(name_or_path)):
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise UserError(f"{one_line(min(missing))}: not set in {one_line(name_or_path)}: give it a value")
        config: Config = OmegaConf.to_object(merged)
        check(config)
    folder = config.cluster.folder
    config.policy.path = everywhere(config.policy.path, folder)
    for expert in config.experts.values():
        own = "." in expert.kind  # what a class of the user's own makes of a path that is none, it knows
        expert.path = everywhere(expert.path, None if own else folder)
    if folder:
        config.data.prompts = _below(folder, config.data.prompts)
        config.eval.prompts = config.eval.prompts and _below(folder, config.eval.prompts)
        config.journal.root = _below(folder, config.journal.root)
    return config


def everywhere(path: str, folder: str | None = None) -> str:
    """A checkpoint's path as every process of a run understands it, for actors have working directories of their own.

    Absolute if it exists here. folder: `cluster.folder`, where relative paths begin; a hub id does only if it names
    something there. Without one, a path that only other nodes have is left alone as well.
    """
    local = _below(folder, path) if folder else os.path.expanduser(path)
    if os.path.exists(local) or (folder and not HUB_ID.fullmatch(path)):
        return os.path.abspath(local)
    return path


def _below(folder: str, path: str) -> str:
    """A path that begins in `folder`; an absolute one stays what it is."""
    return os.path.join(os.path.expanduser(folder), os.path.expanduser(path))


def save(config: Config, path: Path) -> None:
    """Write it so that `load` gives the same configuration, also in another job. Raises RunError if the disk fails."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    write_whole(path, OmegaConf.to_yaml(OmegaConf.create(portable(values))))


def _read_yaml(name_or_path: str) -> DictConfig:
    configs = Path(str(resources.files("t2ir1_ray") / "config"))
    with _one_line(f"--config: {one_line(name_or_path)} is not YAML"):
        shipped = configs / f"{name_or_path}.yaml"
        path = shipped if shipped.is_file() else Path(name_or_path)
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in configs.glob("*.yaml")))
            raise UserError(f"--config: {one_line(name_or_path)} is no file and none of {names}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"--config: {path} is longer than {MAX_FILE_BYTES} bytes: no configuration")
        loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise UserError(f"--config: {path} must hold a mapping of sections")
    return loaded


def _merge(base: DictConfig, update: DictConfig, source: str) -> DictConfig:
    with _one_line(one_line(source)):
        for key, value in leaves(OmegaConf.to_container(update)):
            if isinstance(value, str) and "${" in INTERPOLATION.sub("", value):
                raise UserError(
                    f"{one_line(key)}={one_line(value)}: only ${{section.key}} and ${{shipped:name}} are replaced"
                )
        try:
            return OmegaConf.merge(base, update)
        except ConfigKeyError as error:
            key = one_line(error.full_key)
            raise UserError(f"{one_line(source)}: unknown key {key}{_nearest(base, key)}") from None


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    """Whatever PyYAML, OmegaConf and Python have against a configuration, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of many classes
        key = getattr(error, "full_key", None)
        field = f"{one_line(key)}: " if key and str(key) not in source else ""
        raise UserError(f"{source}: {field}{one_line(error) or type(error).__name__}") from None


def _nearest(base: DictConfig, key: str) -> str:
    known = _paths(base)
    leaf = key.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(key, known, 1) or [k for k in known if k.rsplit(".", 1)[-1] == leaf][:1]
    close = close or [k for k in known if difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1]], 1)][:1]
    return f": did you mean {close[0]}?" if close else f": sections are {', '.join(base.keys())}"


def _paths(node: DictConfig, prefix: str = "") -> list[str]:
    paths = []
    for key in node:
        path = f"{prefix}{key}"
        paths.append(path)
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            paths.extend(_paths(child, f"{path}."))
    return paths
