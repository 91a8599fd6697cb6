"""Bad signs are told in words, once, and healthy runs are left alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from t2ir1_ray import config
from t2ir1_ray.journal.warning_signs import WINDOW, WarningSigns

HEALTHY = {
    "reward/zero_std_groups": 0.1,
    "mismatch/semantic_abs_mean": 1e-7,
    "mismatch/semantic_max": 1e-6,
    "mismatch/image_abs_mean": 1e-6,
    "mismatch/image_max": 1e-5,
    "staleness": 0,
    "plan/truncated": 0.0,
    "plan/length": 30.0,
    "entropy/image": 0.5,
}


def run(changes: Mapping[str, object], steps: int = 3 * WINDOW, settings: Sequence[str] = ()) -> list[str]:
    """All sentences of a run with HEALTHY metrics but for `changes`: values, or functions of the step."""
    signs, rng = WarningSigns(config.load("shapes", settings)), np.random.default_rng(0)
    told = []
    for step in range(1, steps + 1):
        metrics = HEALTHY | {
            f"reward/{name}": 1 + rng.normal(0, 0.01) for name in ("hps", "git", "grounding_dino", "orm")
        }
        metrics |= {key: change(step) if callable(change) else change for key, change in changes.items()}
        told += signs.look({**metrics, "step": step})
    return told


def test_a_healthy_run_is_left_alone() -> None:
    assert run({}) == []
    assert run({"staleness": 1, "mismatch/image_max": 0.5}) == []  # an older policy differs by right


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward/zero_std_groups": 1.0}, "equal rewards"),
        ({"mismatch/image_max": 0.2}, "disagree on image tokens"),
        ({"mismatch/semantic_abs_mean": 0.02}, "disagree on semantic tokens"),
        ({"plan/truncated": 0.5}, "max_plan_tokens"),
        ({"plan/length": lambda step: 30 if step <= WINDOW else 5}, "shrunk from 30 to 5"),
        ({"entropy/image": lambda step: 0.5 if step <= WINDOW else 0.05}, "image entropy"),
        (
            {
                "reward/hps": lambda step: 1 + step / 10,
                **{f"reward/{name}": lambda step: 1 - step / 10 for name in ("git", "grounding_dino", "orm")},
            },
            "expert hps rises while all others fall",
        ),
    ],
)
def test_each_bad_sign_is_told(changes: Mapping[str, object], words: str) -> None:
    told = run(changes)
    assert told
    assert all(words in sentence for sentence in told)
    assert len(told) <= 3  # once per window


BFLOAT16 = ["policy.dtype=bfloat16", "learner.dtype=bfloat16"]


def test_bfloat16_may_differ_by_its_rounding_and_no_more() -> None:
    """What Janus-Pro-7B's sizes gave on an H200; LoRA that is rounded away gives more."""
    measured = {"mismatch/image_abs_mean": 0.04, "mismatch/image_max": 0.18}
    assert run(measured, settings=BFLOAT16) == []
    assert "disagree on image tokens" in run({"mismatch/image_abs_mean": 0.2}, settings=BFLOAT16)[0]
    assert "disagree on image tokens" in run({"mismatch/image_max": 0.7}, settings=BFLOAT16)[0]
