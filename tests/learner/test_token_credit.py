"""Token credit: values by hand, and what holds for any input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from learner.token_credit import (
    _steepness,
    critical_tokens,
    entropy_credit,
    group_distances,
    guidance_credit,
    running_confidence,
)

CODEBOOK = np.array([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])  # equal: 0, at right angles: 1/2, opposite: 1
ROWS = st.tuples(st.integers(1, 4), st.sampled_from([16, 25, 36]))
SEEDS = st.integers(0, 2**32 - 1)


def values(seed: int, shape: tuple[int, int]) -> Tensor:
    """Of a few levels only, so that many tokens are equal."""
    return torch.randint(0, 12, shape, generator=torch.Generator().manual_seed(seed)) / 4


def whole(count: int, length: int) -> Tensor:
    return torch.ones(count, length, dtype=torch.bool)


@pytest.mark.parametrize(
    ("advantage", "raised"),
    [
        (1.0, [1.3] * 5),
        (-1.0, [0.7] * 5),  # a bad sample's unsure tokens are blamed less
        (20.0, [1.09, 1.105, 1.12, 1.135, 1.15]),  # 0.3 H is the smaller bonus
        (0.0, [1.0] * 5),
    ],
)
def test_entropy_credit_by_hand(advantage: float, raised: list[float]) -> None:
    """Ten tokens: two are left out, three stay as they are, five get the bonus; then the mean is made 1."""
    entropies = torch.tensor([[10.0, 1, 9, 2, 8, 3, 7, 4, 6, 5]])
    expected = torch.tensor([raised[4], 0, raised[3], 0, raised[2], 1, raised[1], 1, raised[0], 1])
    found = entropy_credit(entropies, torch.full((1, 10), advantage), whole(1, 10))
    torch.testing.assert_close(found[0], expected / expected.mean())


@given(ROWS, SEEDS, st.floats(-3, 3, width=32))
def test_entropy_credit_is_neutral_and_blind_to_padding(shape: tuple[int, int], seed: int, advantage: float) -> None:
    entropies, lengths = values(seed, shape), values(seed + 1, (shape[0], 1)) * 4 + 1
    mask = torch.arange(shape[1]) < lengths
    advantages = torch.full(shape, advantage)
    found = entropy_credit(entropies.where(mask, torch.nan), advantages.where(mask, torch.nan), mask)
    torch.testing.assert_close(found.sum(1), mask.sum(1).float())
    assert not found[~mask].any()
    for row, length in enumerate(lengths[:, 0].int().tolist()):
        alone = entropy_credit(entropies[row : row + 1, :length], advantages[:1, :length], whole(1, length))
        torch.testing.assert_close(found[row, :length], alone[0])


def test_a_row_of_padding_gets_nothing() -> None:
    nothing = torch.zeros(1, 4)
    assert entropy_credit(nothing, nothing, ~whole(1, 4)).tolist() == [[0.0] * 4]


def test_guidance_credit_by_hand() -> None:
    """k3 of 0, -1, 1, -2 and 3 is 0, 0.37, 0.72, 1.14 and 16.1: ranks 1 to 5, to the power ln 0.2 / ln 0.6 - 1."""
    found = guidance_credit(torch.tensor([[3.0, 0.0, -1.0, 1.0, -2.0]]))
    expected = torch.tensor([5.0, 1, 2, 3, 4]) ** 2.150660
    torch.testing.assert_close(found[0], 5 * expected / expected.sum())


def test_two_fifths_of_the_tokens_hold_four_fifths_of_the_guidance_credit() -> None:
    found = guidance_credit(torch.linspace(0, 5, 1000)[None])
    assert found[0, 600:].sum().item() / 1000 == pytest.approx(0.8, abs=2e-3)


@given(ROWS, SEEDS)
def test_guidance_credit_is_neutral_and_equal_for_equal_tokens(shape: tuple[int, int], seed: int) -> None:
    contrast = values(seed, shape) - 1
    found = guidance_credit(1000 * contrast)  # a token that only the prompt allows
    torch.testing.assert_close(found.mean(1), torch.ones(shape[0]))
    for row in range(shape[0]):
        for level in contrast[row].unique():
            same = found[row, contrast[row] == level]
            torch.testing.assert_close(same, same[:1].expand_as(same))


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        ([1, -1, 0], [2.25, 1.5, 2.25]),  # all are opposed: 3/4, 1/2, 3/4 at the first place
        ([1, 1, -2], [8 / 3, 4 / 3, 2]),  # the first two agree: 1, 1/2, 3/4
        (None, [2, 2, 2]),  # all pairs: 2/3
    ],
)
def test_distances_by_hand(advantages: list[float] | None, expected: list[float]) -> None:
    codes = np.array([[0, 0], [1, 0], [2, 0]])  # all three have the same at the second place
    opposed = None if advantages is None else np.array(advantages)
    found = group_distances(codes, np.zeros(3, int), CODEBOOK, opposed)
    np.testing.assert_allclose(found, [[value, 0] for value in expected], rtol=1e-6)


@given(hnp.arrays(np.int64, (7, 4), elements=st.integers(0, 2)), SEEDS, st.booleans())
def test_distances_are_neutral_in_a_group_and_follow_the_samples(codes: np.ndarray, seed: int, opposed: bool) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, 7)
    advantages = rng.normal(size=7)
    for number in range(3):  # as advantages are
        advantages[group == number] -= advantages[group == number].mean() if (group == number).any() else 0
    found = group_distances(codes, group, CODEBOOK, advantages if opposed else None)
    assert (found >= 0).all()
    for number in np.unique(group):
        assert found[group == number].mean() == pytest.approx(1, rel=1e-5)
    order = rng.permutation(7)
    moved = group_distances(codes[order], group[order], CODEBOOK, advantages[order] if opposed else None)
    np.testing.assert_allclose(moved, found[order], rtol=1e-5, atol=1e-7)


def test_equal_images_have_nothing_to_tell_apart() -> None:
    book = np.random.default_rng(0).normal(size=(5, 8))
    codes = np.array([[3, 1, 4, 1]] * 3)
    for advantages in (None, np.array([1.0, -1.0, 0.0])):
        assert (group_distances(codes, np.zeros(3, int), book, advantages) == 1).all()
    assert (group_distances(codes[:1], np.zeros(1, int), book) == 1).all()


def test_steepness_by_hand() -> None:
    """Smoothed over itself and the tokens before it, 4 in the last corner is 1 of 4: the others are 0."""
    root = math.sqrt(2)
    assert _steepness(torch.tensor([[[0.0, 0.0], [0.0, 4.0]]]))[0].tolist() == [[0, 1], [1, pytest.approx(root)]]


def test_critical_tokens_by_hand() -> None:
    """16 tokens, one of each kind: the first; the steepest but the last, 11; the most distant of the rest, 5."""
    entropies, distances = torch.zeros(1, 16), torch.ones(1, 16)
    entropies[0, 15] = 8.0  # smoothed 2 in the corner: steep there, and half as steep at 11 and at 14
    entropies[0, 10] = 0.8  # and 11 a little more
    distances[0, [0, 5, 11]] = torch.tensor([9.0, 2.0, 8.0])
    expected = torch.zeros(1, 16)
    expected[0, [0, 5, 11]] = 16 / 3
    torch.testing.assert_close(critical_tokens(entropies, distances), expected)


@given(ROWS, SEEDS, st.booleans())
def test_critical_tokens_are_a_share_and_follow_the_samples(shape: tuple[int, int], seed: int, constant: bool) -> None:
    entropies = torch.ones(shape) if constant else values(seed, shape)
    distances = torch.ones(shape) if constant else values(seed + 1, shape)
    found = critical_tokens(entropies, distances)
    assert ((found > 0).sum(1) == 3 * (shape[1] // 10)).all()
    torch.testing.assert_close(found.mean(1), torch.ones(shape[0]))
    assert torch.equal(critical_tokens(entropies.flip(0), distances.flip(0)), found.flip(0))


def test_running_confidence_by_hand() -> None:
    """Ratios 1, 2 (clipped to e^0.5 = 1.64872) and 0.8; their means so far."""
    difference = torch.tensor([[0.0, math.log(2), math.log(0.8)]])
    found = running_confidence(difference - 3, torch.full((1, 3), -3.0))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.324361, 1.149574]]))


@given(SEEDS)
def test_a_policy_that_is_its_reference_has_an_even_confidence(seed: int) -> None:
    logprobs = -values(seed, (3, 25))
    torch.testing.assert_close(running_confidence(logprobs, logprobs), torch.ones(3, 25))


@given(st.floats(0, 10, width=32), st.floats(-2, 2, width=32))
def test_tokens_that_are_all_alike_are_credited_alike(value: float, advantage: float) -> None:
    same = torch.full((2, 9), value)
    ones = torch.ones(2, 9)
    torch.testing.assert_close(entropy_credit(same, torch.full((2, 9), advantage), whole(2, 9)), ones)
    torch.testing.assert_close(guidance_credit(same), ones)
