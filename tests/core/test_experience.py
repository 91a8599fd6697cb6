"""From scored groups to learner batches: plans that several images share, groups that have lost samples."""

import numpy as np
import pytest

from learner.token_credit import group_distances
from t2ir1_ray import config
from t2ir1_ray.loop.experience import _spread, assemble, compared_codebook, share_plans
from tests.core.test_in_flight import group
from tests.learner.samples import random_batch


def test_a_shared_plan_pulls_as_hard_as_its_copies() -> None:
    """For every token, weight * advantage (the gain's gradient) and weight (the KL's) add up to the same."""
    batch, plan = random_batch(0), np.array([0, 0, 1, 2, 2, 2, 3])
    shared = share_plans(batch, plan)
    for number in range(4):
        members = plan == number
        weights = batch.semantic_token_weight[members]
        gain = (weights[0] * batch.semantic_advantage[members]).sum()  # copies of a plan have the same weight
        owners = [row for row in np.flatnonzero(members) if len(shared.semantic_ids[row])]
        assert owners == [np.flatnonzero(members)[0]]
        owner = owners[0]
        assert np.isclose(shared.semantic_token_weight[owner], weights[0] * members.sum())
        assert np.isclose(shared.semantic_token_weight[owner] * shared.semantic_advantage[owner], gain, rtol=1e-5)
        assert shared.semantic_ids[owner].tolist() == batch.semantic_ids[owner].tolist()
        assert len(shared.semantic_logprobs[owner]) == len(shared.semantic_ref_logprobs[owner]) > 0
    np.testing.assert_array_equal(shared.image_advantage, batch.image_advantage)
    np.testing.assert_array_equal(shared.image_token_weight, batch.image_token_weight)


def test_a_group_of_one_sample_has_no_spread() -> None:
    """`reward.min_group_size=1` keeps it: its standard deviation would be NaN."""
    assert _spread(np.array([1.0, 3.0, 7.0]), np.array([0, 0, 1])) == np.sqrt(2.0)
    assert _spread(np.array([1.0, 3.0]), np.array([0, 1])) is None


@pytest.mark.parametrize("credit", ["none", "similarity", "critical"])
def test_images_are_compared_before_samples_are_divided_over_ranks(credit: str) -> None:
    settings = config.load("shapes", [f"learner.token_credit={credit}", "learner.beta=0"])
    settings.experts = {"hps": settings.experts["hps"]}
    codebook = compared_codebook(settings)
    batch = assemble([group(0), group(1)], settings, 1, codebook).batch
    if credit == "none":
        assert codebook is None
        assert [len(distances) for distances in batch.image_distance] == [0] * 6
        return
    opposed = batch.image_advantage if credit == "similarity" else None
    expected = group_distances(batch.image_ids, np.repeat([0, 1], 3), codebook, opposed)
    np.testing.assert_array_equal(np.stack(batch.image_distance), expected)
    assert (expected != 1).any()
