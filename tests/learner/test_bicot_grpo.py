"""The loss against the official code's numbers, and properties that hold for any input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from learner.bicot_grpo import (
    completion_mask,
    group_advantages,
    kl_estimate,
    nested_advantages,
    policy_loss,
    ragged_advantages,
    token_losses,
    token_weights,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "loss_public.json").read_text())["cases"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["scenario"])
def test_loss_equals_the_official_one(case: dict[str, Any]) -> None:
    expected = case["expected"]
    per_plan, group = case["images_per_completion"], case["num_generations"] * case["images_per_completion"]
    semantic = torch.tensor(case["semantic_policy_logps"], requires_grad=True)
    image = torch.tensor(case["image_policy_logps"], requires_grad=True)
    mask = completion_mask(torch.tensor(case["completion_ids"]), case["eos_token_id"])
    assert mask.tolist() == expected["semantic_mask"]

    rewards = torch.tensor(case["rewards"]).sum(1)
    advantages = group_advantages(rewards, group)
    torch.testing.assert_close(advantages, torch.tensor(expected["advantages"]), rtol=1e-4, atol=1e-5)
    side_by_side = [
        torch.cat([text.repeat_interleave(per_plan, 0), drawn], 1)
        for text, drawn in (
            (semantic, image),
            (torch.tensor(case["semantic_ref_logps"]), torch.tensor(case["image_ref_logps"])),
            (mask, torch.ones_like(image, dtype=torch.long)),
        )
    ]
    policy, reference, both = side_by_side
    result = policy_loss(policy, reference, advantages, both, case["beta"])
    result.loss.backward()
    for found, name in ((result.loss, "loss"), (result.kl, "mean_kl")):
        torch.testing.assert_close(found.detach(), torch.tensor(expected[name]), rtol=1e-4, atol=1e-5)
    kept = both.bool()
    torch.testing.assert_close(
        result.per_token.detach()[kept], torch.tensor(expected["per_token_loss"])[kept], rtol=1e-4, atol=1e-5
    )
    assert not result.per_token[~kept].any()
    for found, name in ((semantic, "grad_semantic_policy_logps"), (image, "grad_image_policy_logps")):
        torch.testing.assert_close(found.grad, torch.tensor(expected[name]), rtol=1e-4, atol=1e-7)


REWARDS = hnp.arrays(np.float32, st.integers(2, 24), elements=st.floats(-4, 4, width=32))


@given(REWARDS, st.data())
def test_advantages_of_a_group_sum_to_zero_and_ignore_a_constant(rewards: np.ndarray, data: st.DataObject) -> None:
    group = data.draw(hnp.arrays(np.int64, len(rewards), elements=st.integers(0, 3)))
    advantages = ragged_advantages(rewards, group)
    for number in np.unique(group):
        assert abs(advantages[group == number].sum()) < 1e-3
    quarters = (rewards * 4).round() / 4
    shifted = quarters + group.astype(np.float32)
    np.testing.assert_allclose(ragged_advantages(shifted, group), ragged_advantages(quarters, group), atol=1e-5)
    order = data.draw(st.permutations(range(len(rewards))))
    np.testing.assert_allclose(ragged_advantages(rewards[order], group[order]), advantages[order], atol=1e-6)


@given(st.floats(-4, 4, width=32), st.integers(2, 9))
def test_equal_rewards_have_no_advantage_at_all(reward: float, size: int) -> None:
    rewards = np.full(size, reward, np.float32)
    assert not group_advantages(torch.from_numpy(rewards), size).any()
    assert not ragged_advantages(rewards, np.zeros(size, int)).any()


def test_ragged_advantages_by_hand() -> None:
    rewards, group = np.array([1.0, 5.0, 3.0, 7.0], np.float32), np.array([9, 4, 9, 2])
    assert ragged_advantages(rewards, group, eps=0.0).tolist() == pytest.approx([-(0.5**0.5), 0, 0.5**0.5, 0])
    assert ragged_advantages(rewards, group, std=False).tolist() == [-1, 0, 1, 0]


@given(st.permutations(range(6)), st.integers(0, 2**32 - 1))
def test_permuting_samples_permutes_gradients(order: list[int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logprobs, reference, old = (torch.randn(6, 5, generator=rng) / 4 - 2 for _ in range(3))
    advantages, mask = torch.randn(6, generator=rng), torch.rand(6, 5, generator=rng) < 0.7
    mask[:, 0] = True

    def gradient(rows: list[int]) -> torch.Tensor:
        leaf = logprobs[rows].requires_grad_()
        policy_loss(leaf, reference[rows], advantages[rows], mask[rows], 0.1, old[rows]).loss.backward()
        return leaf.grad

    torch.testing.assert_close(gradient(order), gradient(list(range(6)))[order])


def test_masked_positions_may_hold_anything() -> None:
    wild = torch.tensor([[-1.0, float("nan"), 1e9]], requires_grad=True)
    mask = torch.tensor([[1, 0, 0]])
    reference = torch.tensor([[-1.0, 0.0, float("-inf")]])
    result = policy_loss(wild, reference, torch.tensor([2.0]), mask, 0.1)
    result.loss.backward()
    assert (result.loss.item(), result.kl.item()) == (-2.0, 0.0)
    assert wild.grad.tolist() == [[-2.0, 0.0, 0.0]]


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-4, 4, width=32)))
def test_ragged_advantages_equal_the_official_ones_on_whole_groups(rewards: np.ndarray) -> None:
    rewards = rewards.round(2)
    ragged = ragged_advantages(rewards.ravel(), np.repeat(np.arange(3), 4))
    official = group_advantages(torch.from_numpy(rewards.ravel()), 4).numpy()
    spread = np.repeat(np.ptp(rewards, axis=1) > 0, 4)
    np.testing.assert_allclose(ragged[spread], official[spread], atol=0.02, rtol=1e-2)
    assert not ragged[~spread].any()


@given(
    hnp.arrays(np.int64, 6, elements=st.integers(1, 50)),
    st.sampled_from(["group", "token", "sequence"]),
    st.integers(1, 20),
)
def test_token_weights_add_up_to_one(lengths: np.ndarray, average: str, image: int) -> None:
    group = np.array([0, 0, 1, 1, 1, 2])
    semantic, drawn = token_weights(lengths, np.full(6, image), group, average)
    assert (semantic * lengths + drawn * image).sum() == pytest.approx(1, rel=1e-5)
    if average == "group":
        for number in range(3):
            members = group == number
            share = (semantic * lengths + drawn * image)[members].sum()
            assert share == pytest.approx(1 / 3, rel=1e-5)


def test_segments_are_weighted_after_averaging() -> None:
    lengths = (np.array([3, 5]), np.array([4, 4]), np.array([0, 1]))
    plain, weighted = token_weights(*lengths), token_weights(*lengths, "group", 0.5, 2.0)
    np.testing.assert_allclose(weighted[0], plain[0] * 0.5)
    np.testing.assert_allclose(weighted[1], plain[1] * 2.0)
    np.testing.assert_allclose(plain[0], [1 / 14, 1 / 18])


def test_kl_estimates_by_hand() -> None:
    policy, reference = torch.tensor([0.0]), torch.tensor([0.5])
    assert kl_estimate(policy, reference, "k1").item() == pytest.approx(-0.5)
    assert kl_estimate(policy, reference, "k2").item() == pytest.approx(0.125)
    assert kl_estimate(policy, reference, "k3").item() == pytest.approx(np.exp(0.5) - 1.5)


def test_clipping_bounds_the_gain_and_stops_the_gradient() -> None:
    logprobs = torch.log(torch.tensor([2.0, 2.0, 0.5, 1.0])).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0])
    tokens = token_losses(logprobs, logprobs.detach(), advantages, 0.0, old_logprobs=torch.zeros(4), clip_high=0.3)
    assert tokens.loss.tolist() == pytest.approx([-1.3, 2.0, -0.5, -1.0])
    assert tokens.clipped.tolist() == [True, False, False, False]
    tokens.loss.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([0.0, 2.0, -0.5, -1.0])


def test_truncation_bounds_the_weight_and_keeps_the_gradient() -> None:
    logprobs = torch.log(torch.tensor([4.0, 4.0, 0.5])).requires_grad_()
    advantages, bound = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([2.0, 3.0, 2.0])
    tokens = token_losses(logprobs, logprobs.detach(), advantages, 0.0, old_logprobs=torch.zeros(3), max_ratio=bound)
    assert tokens.loss.tolist() == pytest.approx([-2.0, 3.0, -0.5])
    assert tokens.clipped.tolist() == [True, True, False]
    tokens.loss.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-2.0, 3.0, -0.5])


def test_nested_advantages_by_hand() -> None:
    """Two plans with two images each, worth 2 and 4; images lie 1 from their plan's mean, one plan's do not differ."""
    rewards, plan = np.array([1.0, 3.0, 4.0, 4.0], np.float32), np.array([0, 0, 1, 1])
    semantic, image = nested_advantages(rewards, np.zeros(4, int), plan, eps=0.0)
    half = 0.5**0.5
    assert semantic.tolist() == pytest.approx([-half, -half, half, half])
    assert image.tolist() == pytest.approx([-1, 1, 0, 0])  # pooled: sum of squares 2 over (2 - 1) + (2 - 1)
    _, plain = nested_advantages(rewards * 3, np.zeros(4, int), plan, std=False)
    assert plain.tolist() == pytest.approx([-3, 3, 0, 0])


@given(REWARDS, st.integers(0, 2**32 - 1))
def test_nested_advantages_of_single_images_are_the_shared_ones(rewards: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, len(rewards))
    plan = rng.permutation(len(rewards))
    for found in nested_advantages(rewards, group, plan):
        np.testing.assert_allclose(found, ragged_advantages(rewards, group), atol=1e-6)


@given(hnp.arrays(np.float32, 12, elements=st.integers(-8, 8).map(float)), st.integers(2, 3), st.integers(-4, 4))
def test_nested_advantages_sum_to_zero_at_both_levels(rewards: np.ndarray, images: int, constant: int) -> None:
    group, plan = np.repeat([0, 1], 6), np.arange(12) // images
    semantic, image = nested_advantages(rewards, group, plan)
    for number in range(2):
        assert abs(semantic[group == number].sum()) < 1e-4
    for number in range(12 // images):
        assert abs(image[plan == number].sum()) < 1e-3
        assert len(set(semantic[plan == number].tolist())) == 1
    for found, again in zip((semantic, image), nested_advantages(rewards + constant, group, plan), strict=True):
        np.testing.assert_allclose(found, again, atol=1e-5)
