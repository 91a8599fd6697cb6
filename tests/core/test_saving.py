"""What a checkpoint takes, what a job must be given to write one, and whether a call to the learner outlasts it."""

import re
from pathlib import Path

import pytest

from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.fitting import saving
from t2ir1_ray.fitting.memory import Shapes
from t2ir1_ray.fitting.published import published


def load(*overrides: str) -> Config:
    return configuration.load("janus_pro_7b", list(overrides))


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes.of(published("Janus-Pro-7B"))


def test_a_save_is_timed_where_it_will_be_written(shapes: Shapes, tmp_path: Path) -> None:
    (check,) = saving.saving(load(f"journal.root={tmp_path / 'not' / 'yet'}"), shapes)
    pattern = (
        r"one checkpoint takes 97.\d GB, about (\d+) s to write at ([\d.e+]+) GB/s .* on (.*)\): give jobs (.*)=(\d+)"
    )
    seconds, rate, there, variable, wait = re.match(pattern, check.text).groups()
    assert (check.level, variable, there) == ("ok", "RAY_JOB_STOP_WAIT_TIME_S", str(tmp_path))
    assert int(seconds) == pytest.approx(97.8 / float(rate), rel=0.1)
    assert 2 * int(seconds) + 58 <= int(wait) < 2 * int(seconds) + 122
    assert not list(tmp_path.iterdir())
    assert [saving.stop_wait_s(s) for s in (0, 30, 31)] == [60, 120, 180]


@pytest.mark.parametrize(("gb_per_s", "wait_s"), [(0.2, None), (0.05, 4020)])
def test_a_disk_on_which_a_save_may_outlast_a_call_is_named(
    gb_per_s: float, wait_s: int | None, shapes: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """98 GB: 489 s, and 1,956 s, of which the disk may take twice as long; 1,800 s are what a call may take."""
    monkeypatch.setattr(saving, "measured_rate", lambda _: gb_per_s)
    _, *warned = saving.saving(load(f"journal.root={tmp_path}"), shapes)
    assert len(warned) == (wait_s is not None)
    for check in warned:
        assert check.level == "warn"
        assert check.text.startswith("cluster.call_timeout_s=1800: ")
        assert f"set it to {wait_s}," in check.text
        assert not list(saving.saving(load(f"journal.root={tmp_path}", f"cluster.call_timeout_s={wait_s}"), shapes))[1:]
