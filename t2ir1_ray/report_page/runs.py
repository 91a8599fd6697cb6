"""A run folder as plain values: its metrics, its configuration and where its dumps lie."""

import json
import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from t2ir1_ray.config.rules import one_line
from t2ir1_ray.errors import UserError
from t2ir1_ray.report_page.health import History
from t2ir1_ray.report_page.tail import Tail
from t2ir1_ray.storage import SILENCE_S, heartbeat

METRICS, ACTIVITY, NOW, CONFIG = "metrics.jsonl", "activity.jsonl", "now.json", "config.yaml"
BySteps = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """One run. S steps were reported; a metric has a value, or None, at each of them."""

    name: str
    steps: list[int]  # (S,) ascending
    series: dict[str, list[float | None]]  # metric -> (S,)
    config: dict[str, str]  # dotted key -> value; empty without config.yaml
    dumps: dict[int, Path]  # step -> Parquet file
    history: History
    beats: bool | None  # see `heartbeat`


def read_run(folder: Path) -> Run:
    """Raises UserError if there is no such run, it has reported nothing, or a file of it cannot be read."""
    check_folder(folder)
    steps, series = _read_metrics(folder / METRICS)
    history = History()
    history.add(Tail(folder / ACTIVITY).read()[1])
    beat = heartbeat(folder)
    beats = beat and abs(time.time() - beat) < SILENCE_S
    return Run(folder.resolve().name, steps, series, read_config(folder), dumps_in(folder), history, beats)


def check_folder(folder: Path) -> None:
    """Raises UserError if there is no such folder."""
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # a name that is too long
        raise UserError(f"RUN: {str(folder)[:200]}: {error.strerror}") from None
    if not is_folder:
        raise UserError(f"RUN: {folder} does not exist: name a run folder such as runs/seed0")


def dumps_in(folder: Path) -> dict[int, Path]:
    """step -> Parquet file, by step."""
    found = {path: re.fullmatch(r"step_(\d{1,9})\.parquet", path.name) for path in folder.glob("rollouts/*.parquet")}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match and path.is_file()))


def _read_metrics(path: Path) -> tuple[list[int], dict[str, list[float | None]]]:
    if not path.is_file():
        raise UserError(f"RUN: {path} does not exist: name the folder of a run that has started")
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"RUN: {path} cannot be read ({error.strerror})") from None
    by_step: BySteps = {}
    add_metrics(by_step, lines, path)
    if not by_step:
        raise UserError(f"RUN: {path} holds no metrics yet: wait for the first step, or watch it with --follow")
    return as_columns(by_step, sorted(by_step))


def add_metrics(by_step: BySteps, lines: Iterable[bytes], path: Path, first: int = 1) -> None:
    """Put lines of metrics.jsonl, from line number `first` on, under their steps. Raises UserError for a bad one."""
    for number, line in enumerate(lines, first):
        if line.strip():
            record = _record(line, f"{path}:{number}")
            by_step.setdefault(int(record.pop("step")), {}).update(record)


def as_columns(by_step: BySteps, steps: list[int]) -> tuple[list[int], dict[str, list[float | None]]]:
    """(S steps, metric -> (S,) values or None)."""
    keys = dict.fromkeys(key for step in steps for key in by_step[step])
    return steps, {key: [by_step[step].get(key) for step in steps] for key in keys}


def _record(line: bytes, where: str) -> dict[str, float]:
    """The finite numbers of one line, rounded to what a curve can show."""
    try:
        record = json.loads(line, parse_int=float)
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not a JSON object: mend or remove the line") from None
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, float) or not step.is_integer() or not 0 <= step < 1e9:
        raise UserError(f"{where} has no step: every line is an object with a whole number `step`")
    numbers = {key: value for key, value in record.items() if isinstance(value, float) and math.isfinite(value)}
    return {key: value if key == "step" else float(f"{value:.6g}") for key, value in numbers.items()}


def read_config(folder: Path) -> dict[str, str]:
    """Dotted key -> value; empty without config.yaml. Raises UserError if that file is broken."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        loaded = OmegaConf.load(path)
        tree = OmegaConf.to_container(loaded) if isinstance(loaded, DictConfig) else {}
        return {key: "" if value is None else str(value) for key, value in _leaves(tree)}
    except Exception as error:  # yaml, unicode and I/O errors, of several classes
        raise UserError(f"RUN: {path} is not YAML ({one_line(error) or 'no mapping of sections'})") from None


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if key == "runtime_env":  # may hold tokens, and the page is meant to be passed on
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
