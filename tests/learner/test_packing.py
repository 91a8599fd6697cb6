"""Micro-batches: nothing lost, nothing doubled, within budget, little padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.packing import in_token_order, micro_batches

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 300))
def test_every_token_is_predicted_once_within_the_budget(lengths: list[tuple[int, int, int]], budget: int) -> None:
    rng = np.random.default_rng(0)
    prompts, plans, image_prompts = ([rng.integers(0, 50, n) for n in column] for column in zip(*lengths, strict=True))
    images = rng.integers(0, 50, (len(lengths), 8))
    batches = micro_batches(prompts, plans, image_prompts, images, budget)

    everything = in_token_order(plans, images)
    numbers = np.concatenate([batch.token.numpy() for batch in batches])
    assert sorted(numbers) == list(range(len(everything)))
    for batch in batches:
        predicted = np.concatenate([batch.semantic_ids.numpy(), batch.image_ids.numpy()])
        np.testing.assert_array_equal(predicted, everything[batch.token.numpy()])
        assert batch.text_ids.numel() <= budget or len(batch.text_ids) == 1
    used = sum(len(prompt) + len(plan) - 1 for prompt, plan in zip(prompts, plans, strict=True) if len(plan))
    used += sum(len(prompt) + images.shape[1] - 1 for prompt in image_prompts)
    assert used <= sum(batch.text_ids.numel() for batch in batches) <= 2 * used
    widths = [batch.text_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_inputs_by_hand() -> None:
    """One plan 5 6 | 7 8 9 and one image 1 2 3 | 40 41: the last target is no input, the image's codes stand apart."""
    image = np.array([[40, 41]])
    (batch,) = micro_batches([np.array([5, 6])], [np.array([7, 8, 9])], [np.array([1, 2, 3])], image, 8)
    assert batch.text_ids.tolist() == [[5, 6, 7, 8], [1, 2, 3, 0]]
    assert (batch.code_ids.tolist(), batch.code_places.tolist()) == ([40], [7])
    assert (batch.semantic_ids.tolist(), batch.semantic_places.tolist()) == ([7, 8, 9], [1, 2, 3])
    assert (batch.image_ids.tolist(), batch.image_places.tolist()) == ([40, 41], [6, 7])
    assert batch.token.tolist() == [0, 1, 2, 3, 4]
