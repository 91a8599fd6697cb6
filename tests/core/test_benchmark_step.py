"""Shares of a step, by hand."""

from tests.benchmarks.step import shares


def test_what_is_outside_the_phases_is_the_rest() -> None:
    lines = [
        {"time/rollout_s": 1.0, "time/score_s": 0.5, "time/learn_s": 0.25, "time/publish_s": 0.125},
        {"time/rollout_s": 3.0, "time/score_s": 0.5, "time/learn_s": 0.25, "time/publish_s": 0.125},
    ]
    assert shares([2.0, 4.125], lines) == {
        "step_s": 3.0625,
        "rollout_s": 2.0,
        "score_s": 0.5,
        "learn_s": 0.25,
        "publish_s": 0.125,
        "outside_s": 0.1875,
        "outside": round(0.375 / 6.125, 4),
    }
