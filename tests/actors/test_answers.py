"""Samples of another policy, and numbers that are none: refused by the name of the sample."""

from dataclasses import replace

import numpy as np
import pytest

from actors.answers import check_reference, check_rollouts
from t2ir1_ray.errors import RunError
from t2ir1_ray.records.schema import ReferenceLogprobs
from tests.core.test_in_flight import group

SAMPLES = group(0, version=4).rollouts


def test_what_was_asked_for_is_taken() -> None:
    check_rollouts("rollout 0", SAMPLES, 4)
    check_reference("reference 0", SAMPLES, group(1).reference)


@pytest.mark.parametrize("version", [3, 5])
def test_samples_of_another_version_are_refused(version: int) -> None:
    mixed = replace(SAMPLES, policy_version=np.array([4, version, 4], np.int32))
    message = f"^rollout 1: sample 1 of prompt 7 is of policy version {version} instead of 4$"
    with pytest.raises(RunError, match=message):
        check_rollouts("rollout 1", mixed, 4)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("kind", ["plan", "image"])
def test_a_log_prob_that_is_none_names_its_sample(kind: str, bad: float) -> None:
    semantic, image = [np.array([-1.0, bad if row == 2 else -1.0], np.float32) for row in range(3)], np.zeros((3, 4))
    if kind == "image":
        semantic, image[2, 1] = [np.zeros(1, np.float32)] * 3, bad
    broken = replace(SAMPLES, semantic_logprobs=semantic, image_logprobs=image)
    message = f"sample 2 of prompt 7: a log-prob of its {kind} is not finite$"
    with pytest.raises(RunError, match=f"^rollout 0: {message}"):
        check_rollouts("rollout 0", broken, 4)
    with pytest.raises(RunError, match=f"^reference 0: {message}"):
        check_reference("reference 0", SAMPLES, ReferenceLogprobs(semantic, image))
