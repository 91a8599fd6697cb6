"""The time left is that of recent steps, and evaluations count apart."""

from typing import Any

import pytest

from t2ir1_ray.journal import progress
from t2ir1_ray.journal.progress import RECENT, Progress

STEP = {"reward/mean": 1.0, "kl": 0.0} | {f"time/{phase}_s": 0.1 for phase in ("rollout", "score", "learn", "publish")}
EVALUATION = {"heldout/accuracy": 0.5, "heldout/accuracy_greedy": 0.5}


class Run:
    """A run on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int, every: int):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)
        self.progress = Progress(steps, every)
        self.progress.begin(0)

    def show(self, step: int, seconds: float, evaluation: float | None = None) -> float:
        """A step that took so long, evaluation apart; returns the seconds that are said to be left."""
        self.now += seconds + (evaluation or 0.0)
        metrics: dict[str, Any] = {"step": step, **STEP}
        if evaluation:
            metrics |= {**EVALUATION, "time/heldout_s": evaluation}
        self.progress.show(metrics)
        return self.progress.seconds_left(step)


def test_a_slow_beginning_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start and the first evaluation take minutes, steps a second each."""
    run = Run(monkeypatch, steps=120, every=0)
    run.now = 300.0
    run.progress.show({"step": 0, **EVALUATION, "time/heldout_s": 60.0})
    assert run.show(1, seconds=30) == pytest.approx(119 * 30)
    for step in range(2, RECENT + 2):
        left = run.show(step, seconds=1)
    assert left == pytest.approx(120 - (RECENT + 1))


def test_evaluations_to_come_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 2 s, evaluations of 50 s at 4, 8 and, as the last step, 10."""
    run = Run(monkeypatch, steps=10, every=4)
    run.progress.show({"step": 0, **EVALUATION, "time/heldout_s": 50.0})
    assert run.show(1, seconds=2) == pytest.approx(9 * 2 + 3 * 50)
    for step in (2, 3):
        run.show(step, seconds=2)
    assert run.show(4, seconds=2, evaluation=40.0) == pytest.approx(6 * 2 + 2 * 40), "as long as the latest one"
    for step in range(5, 10):
        left = run.show(step, seconds=2, evaluation=40.0 if step == 8 else None)
    assert left == pytest.approx(2 + 40)
    assert run.show(10, seconds=2, evaluation=40.0) == 0.0


def test_the_line_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Run(monkeypatch, steps=61, every=0).show(1, seconds=3)
    printed = capsys.readouterr().out
    assert "step 1/61 reward 1.000" in printed
    assert "ETA 3.0 min" in printed
