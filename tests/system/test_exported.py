"""A run's figures in Prometheus: what the table names is there, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from t2ir1_ray.journal.exported import TABLE, rows_of
from tests.system.runs import metrics

pytestmark = pytest.mark.slow
ELSEWHERE = {"throughput/learn_mfu", "hacking/index"}
"""Sources that such a run does not have: it has no GPU, and no ten steps."""


def test_prometheus_finds_every_name_of_the_table(newcomer: Path) -> None:
    """Debian's Prometheus has scraped the run of the README's first command, which lasts three steps."""
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus on this machine (Debian: apt install prometheus)")
    series = json.loads((newcomer / "series.json").read_text())
    names = {name for row in TABLE for name in row.series if row.source not in ELSEWHERE}
    assert {one["__name__"] for one in series} == names
    assert {one["run"] for one in series} == {"seed0"}

    def values(name: str, label: str) -> set[str]:
        return {one[label] for one in series if one["__name__"] == f"ray_t2ir1_{name}"}

    experts = {"hps", "git", "grounding_dino", "orm"}
    actors = {f"expert-{name}-0" for name in experts} | {"learner-0", "rollout-0", "reference-0"}
    assert values("reward", "expert") == experts
    assert values("phase_seconds", "phase") >= {"rollout", "score", "learn", "publish", "load", "heldout"}
    assert values("images_per_second", "phase") == {"rollout", "score", "learn", "step"}
    assert values("entropy", "segment") == {"semantic", "image"}
    assert values("busy_share", "actor") == actors
    assert values("queue_length", "role") == {actor.removesuffix("-0") for actor in actors}


def test_every_source_of_the_table_is_in_the_metrics_of_the_run(newcomer: Path) -> None:
    lines = metrics(newcomer / "runs" / "seed0")
    found = {row.name for line in lines for key in line for row, _ in rows_of(key)}
    said = {row.name for row in TABLE if row.source.startswith("run/") or row.source == "actors/down"}
    assert found | said == {row.name for row in TABLE if row.source not in ELSEWHERE}
    assert not found & said
    last = lines[-1]
    assert last["publish/bytes"] > 4 * 10**5
    assert 0 < last["usage/busy/learner-0"] <= 1
    assert last["throughput/step_images"] == pytest.approx(32 / last["time/step_s"])
