"""Bad signs are told in words, once, and healthy runs are left alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from t2ir1_ray import config
from t2ir1_ray.journal.warning_signs import WINDOW, WarningSigns

EXPERTS = ("hps", "git", "grounding_dino", "orm")
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
    "plan/written": 64,
    "plan/empty": 0.0,
    "plan/distinct": 60,
    "plan/alike_groups": 0.0,
    "grad_norm": 0.1,
    "lr": 1e-4,
    "kl": 1e-3,
    "publish/changed": 1.0,
    **{f"expert/{name}/{key}": value for name in EXPERTS for key, value in (("zero_spread", 0.1), ("scored", 64))},
}


def run(changes: Mapping[str, object], steps: int = 3 * WINDOW, settings: Sequence[str] = ()) -> list[str]:
    """All sentences of a run with HEALTHY metrics but for `changes`: values, or functions of the step."""
    signs, rng = WarningSigns(config.load("shapes", settings)), np.random.default_rng(0)
    told = []
    for step in range(1, steps + 1):
        metrics = HEALTHY | {f"reward/{name}": 1 + rng.normal(0, 0.01) for name in EXPERTS}
        metrics |= {key: change(step) if callable(change) else change for key, change in changes.items()}
        told += signs.look({**metrics, "step": step})
    return told


NO_SIGNAL = (
    "every group has equal rewards, so nothing is learned: raise rollout.group_size or rollout.temperature, or look "
    "whether an expert always gives the same score"
)


def test_a_healthy_run_is_left_alone() -> None:
    assert run({}) == []
    assert run({"staleness": 1, "mismatch/image_max": 0.5}) == []  # an older policy differs by right
    assert run({"expert/git/zero_spread": None, "plan/alike_groups": None}) == []  # it applied to no prompt
    assert run({"plan/written": 1, "plan/distinct": 1, "plan/alike_groups": None}) == []  # one prompt, one plan
    assert run({"kl": lambda step: 0.0 if step == 1 else 1e-9}) == []  # the first step is the reference's own
    assert run({"kl": 0.0}, settings=["learner.beta=0"]) == []  # there is no reference
    assert run({"grad_norm": 0.0, "publish/changed": 0.0, "reward/zero_std_groups": 1.0}, steps=1) == [NO_SIGNAL]
    assert run({"publish/changed": 0.0, "lr": 0.0, "kl": 0.0}) == []  # a schedule's warm-up may begin at 0
    assert run({"expert/git/follows": 0.99}) == []
    assert run({"mismatch/image_abs_mean": lambda step: 1e-8 if step == 1 else 5e-6}) == []  # float32, all of it
    parting = {"hacking/trained": 0.5, "hacking/watched": 0.1, "hacking/stderr": 0.05}
    assert run({"hacking/index": 0.19, **parting}) == []
    assert run({"hacking/index": 0.4, **parting, "hacking/stderr": 0.14}) == []  # noise of few prompts a step
    assert run({"hacking/index": 0.4, **parting, "hacking/trained": 1.0, "hacking/watched": 0.6}) == []  # both rise
    assert run({"hacking/index": 0.4, **parting, "hacking/trained": -0.1, "hacking/watched": -0.5}) == []  # both fall


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward/zero_std_groups": 1.0}, "equal rewards"),
        ({"mismatch/image_max": 0.2}, "disagree on image tokens"),
        ({"mismatch/semantic_abs_mean": 0.02}, "disagree on semantic tokens"),
        ({"plan/truncated": 0.5}, "max_plan_tokens"),
        ({"plan/truncated": 1.0}, "100% of the plans"),
        ({"plan/empty": 1.0, "plan/distinct": 1, "plan/alike_groups": 1.0}, "every plan is empty"),
        ({"plan/distinct": 1, "plan/alike_groups": 1.0}, "all plans of the step are one text"),
        ({"plan/alike_groups": 1.0}, "no prompt has two different plans"),
        ({"grad_norm": 0.0}, "the gradient is exactly 0"),
        ({"publish/changed": 0.0}, "every published weight as it was"),
        ({"kl": 0.0}, "KL is exactly 0 behind an update"),
        ({"expert/git/zero_spread": 1.0}, "expert git gave "),
        ({"expert/orm/follows": -1.0}, "scores of expert orm do not follow the images"),
        ({"mismatch/image_abs_mean": lambda step: 1e-6 if step == 1 else 1e-4}, "older policy than they say"),
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


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"grad_norm": 0.0}, 1),
        ({"publish/changed": 0.0}, 1),
        ({"plan/empty": 1.0}, 1),
        ({"plan/alike_groups": 1.0}, 1),
        ({"plan/alike_groups": 1.0, "plan/written": 4}, 8),  # few plans may come out alike
        ({"expert/git/zero_spread": 1.0}, 1),
        ({"expert/git/zero_spread": 1.0, "expert/git/scored": 16}, 2),  # few images may be equally good
        ({"kl": 0.0}, 2),  # in the first step it is 0 by right
        ({"mismatch/semantic_abs_mean": lambda step: 1e-7 if step == 1 else 1e-3}, 2),
    ],
)
def test_what_fails_in_silence_is_told_within_a_step(changes: Mapping[str, object], step: int) -> None:
    assert run(changes, steps=step - 1) == []
    assert len(run(changes, steps=step)) == 1


def test_images_of_a_blind_expert_are_counted_in_a_row() -> None:
    def seen(step: int) -> float:
        return 0.5 if step == 2 else 1.0

    few = {"expert/git/scored": 16}
    assert run({"expert/git/zero_spread": seen, **few}, steps=3) == []
    assert run({"expert/git/zero_spread": seen, **few}, steps=4)[0].startswith("expert git gave 32 images")


def test_the_step_in_which_reward_and_monitors_part_is_named() -> None:
    """Together up to step 30; the index passes half of what parts them behind step 32, and all of it behind step 35."""

    def index(step: int) -> float:
        return 0.0 if step <= 30 else (step - 30) / 25

    gains = {"hacking/index": index, "hacking/stderr": 0.05, "hacking/watched": 0.02}
    gains |= {"hacking/trained": lambda step: 0.02 + index(step)}
    assert run(gains, steps=35) == []
    (sentence,) = run(gains, steps=36)
    assert "gained 0.26 of its first spread and what only watches 0.02: they part since step 33" in sentence


BFLOAT16 = ["policy.dtype=bfloat16", "learner.dtype=bfloat16"]


def test_bfloat16_may_differ_by_its_rounding_and_no_more() -> None:
    """What Janus-Pro-7B's sizes gave on an H200; LoRA that is rounded away gives more."""
    measured = {"mismatch/image_abs_mean": 0.04, "mismatch/image_max": 0.18}
    assert run(measured, settings=BFLOAT16) == []
    assert "disagree on image tokens" in run({"mismatch/image_abs_mean": 0.2}, settings=BFLOAT16)[0]
    assert "disagree on image tokens" in run({"mismatch/image_max": 0.7}, settings=BFLOAT16)[0]
