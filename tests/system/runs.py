"""Short real trainings on the shapes world, and the comparison of their journals."""

import json
from pathlib import Path
from typing import Any

import pytest

from t2ir1_ray import config
from t2ir1_ray.config import Config
from t2ir1_ray.trainer import train

SMALL = ["data.prompts_per_step=2", "rollout.prompts_per_call=1", "eval.every=3", "eval.count=24"]
SMALL += ["journal.images_every=0", "journal.keep_last=0", "journal.save_every=2"]
"""Two prompts, each a call of its own: a second rollout actor has something to do."""


UNCOMPARED = {"rollout/images_per_s", "actors/restarts", "padding"}


def small_config(file: Path, *overrides: str, experts: tuple[str, ...] = ("hps",)) -> Config:
    """The shapes configuration with some of its experts and SMALL; `file` receives it before the overrides."""
    shipped = config.load("shapes", SMALL)
    shipped.experts = {name: shipped.experts[name] for name in experts}
    config.save(shipped, file)
    return config.load(str(file), overrides)


def run(folder: Path, *overrides: str, experts: tuple[str, ...] = ("hps",)) -> list[dict[str, Any]]:
    """Train on the Ray cluster of this process; returns the lines of metrics.jsonl."""
    train(small_config(folder.with_suffix(".yaml"), *overrides, experts=experts), folder)
    return metrics(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_metrics(left: list[dict[str, Any]], right: list[dict[str, Any]], tolerance: float) -> None:
    """Every figure but those of time, of restarted actors and of how samples were cut into micro-batches."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        timeless = {key for key in a if not key.startswith("time/")} - UNCOMPARED
        assert timeless <= b.keys()
        for key in timeless:
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=tolerance), (a["step"], key)
