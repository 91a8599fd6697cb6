"""Names of metrics.jsonl and of Ray's metrics: one table, without doubt about any name."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from t2ir1_ray.journal import exported
from t2ir1_ray.journal.exported import NOTHING, TABLE, Exporter, rows_of

REAL = Path(__file__).parent / "data" / "metrics.jsonl"


class Recorded:
    """Stands for one of Ray's metrics: (name, what was called, value, labels) in `calls`."""

    calls: list[tuple[str, str, float, dict[str, str]]] = []

    def __init__(self, name: str, meaning: str, *buckets: list[float], tag_keys: tuple[str, ...]):
        self.name, self.tag_keys = name, tag_keys

    def set_default_tags(self, tags: dict[str, str]) -> "Recorded":
        assert tags == {"run": "seed0"}
        return self

    def __getattr__(self, what: str) -> Any:
        def call(value: float, labels: dict[str, str] | None = None) -> None:
            assert set(labels or {}) | {"run"} == set(self.tag_keys)
            assert what != "inc" or value > 0  # Ray refuses others
            self.calls.append((self.name, what, value, labels or {}))

        return call


class RecordedCounter(Recorded):
    pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float, dict[str, str]]]:
    monkeypatch.setattr(Recorded, "calls", [])
    monkeypatch.setattr(exported, "Gauge", Recorded)
    monkeypatch.setattr(exported, "Histogram", Recorded)
    monkeypatch.setattr(exported, "Counter", RecordedCounter)
    monkeypatch.setattr(exported, "REPEAT_S", 0.01)
    return Recorded.calls


def test_names_are_prometheus_names_and_each_row_has_its_own() -> None:
    assert max(Counter(row.name for row in TABLE).values()) == 1
    for row in TABLE:
        assert re.fullmatch(r"t2ir1_[a-z][a-z_]*[a-z]", row.name)
        assert not row.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert next(row for row in TABLE if row.kind == "histogram").series == (
        "ray_t2ir1_step_seconds_bucket",
        "ray_t2ir1_step_seconds_sum",
        "ray_t2ir1_step_seconds_count",
    )


def test_a_name_as_it_is_goes_before_one_with_a_label() -> None:
    def found(key: str) -> list[tuple[str, dict[str, str]]]:
        return [(row.name.removeprefix("t2ir1_"), labels) for row, labels in rows_of(key)]

    assert found("reward/mean") == [("reward_mean", {})]
    assert found("reward/my-own") == [("reward", {"expert": "my-own"})]
    assert found("time/step_s") == [("step_seconds", {}), ("last_step_seconds", {})]
    assert found("time/learn_s") == [("phase_seconds", {"phase": "learn"})]
    assert found("throughput/gpu_images") == [("images_per_second_per_gpu", {})]
    assert found("expert/hps/task/color") == []
    assert found("rewards/mean") == []


def test_counters_add_up_and_begin_at_nothing(calls: list) -> None:
    exporter = Exporter("seed0", 0, 9)
    for restarts, dropped in ((0, 3.0), (2, 0.0), (2, 1.0)):
        exporter.write({"actors/restarts": restarts, "samples/dropped": dropped})
    exporter.checkpoint(2)
    exporter.close()
    sums = Counter()
    for name, what, value, _ in calls:
        sums[name] += value if what == "inc" else 0
    counters = {row.name for row in TABLE if row.series[0].endswith("_total")}
    assert {name for name, value in sums.items() if value} == counters
    assert sums["t2ir1_actor_restarts"] == pytest.approx(2)
    assert sums["t2ir1_samples_dropped"] == pytest.approx(4)
    assert sums["t2ir1_checkpoints"] == pytest.approx(1)
    assert sums["t2ir1_groups_dropped"] == NOTHING


def test_gauges_are_set_again_and_asked_for(calls: list) -> None:
    down = iter([0, 0, 1])
    exporter = Exporter("seed0", 4, 9, lambda: {"actors/down": next(down, 2)})
    exporter.write({**json.loads(REAL.read_text().splitlines()[1]), "kl": math.nan, "lr": None})
    deadline = 500
    while not any(call[:3] == ("t2ir1_actors_down", "set", 2) for call in list(calls)) and deadline:
        exporter._ended.wait(0.01)
        deadline -= 1
    exporter.close()
    repeated = Counter((name, value, tuple(labels.values())) for name, what, value, labels in calls if what == "set")
    assert repeated["t2ir1_checkpoint_step", 4, ()] > 2
    assert repeated["t2ir1_staleness", 0, ()] > 2
    assert repeated["t2ir1_reward", 0.8125, ("grounding_dino",)] > 2
    assert not [name for name, *_ in repeated if name in ("t2ir1_kl", "t2ir1_learning_rate")]
    assert [value for name, what, value, _ in calls if what == "observe"] == [0.653858513999694]
