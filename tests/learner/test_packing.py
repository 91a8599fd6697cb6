"""Micro-batches: nothing lost, nothing doubled, within budget, little padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.packing import Sequences, in_token_order, micro_batches

LENGTHS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=12)


@given(LENGTHS, st.integers(1, 300))
def test_every_token_is_predicted_once_within_the_budget(lengths: list[tuple[int, int, int]], budget: int) -> None:
    rng = np.random.default_rng(0)
    groups, plans, image_prompts = ([rng.integers(0, 50, n) for n in column] for column in zip(*lengths, strict=True))
    prompts = [np.arange(3 * len(group)) for group in groups]  # three of them, each a group's
    images = rng.integers(0, 50, (len(lengths), 8))
    batches = micro_batches(Sequences(prompts, plans, image_prompts, images), budget)

    everything = in_token_order(plans, images)
    numbers = np.concatenate([batch.token.numpy() for batch in batches])
    assert sorted(numbers) == list(range(len(everything)))
    for batch in batches:
        predicted = np.concatenate([batch.semantic_ids.numpy(), batch.image_ids.numpy()])
        np.testing.assert_array_equal(predicted, everything[batch.token.numpy()])
        assert batch.text_ids.numel() <= budget or len(batch.text_ids) == 1
    apart = sum(len(prompt) + len(plan) - 1 for prompt, plan in zip(prompts, plans, strict=True) if len(plan))
    asked = [len(prompt) for prompt, plan in zip(prompts, plans, strict=True) if len(plan)]
    shared = apart - sum(asked) + sum(set(asked))
    images_used = sum(len(prompt) + images.shape[1] - 1 for prompt in image_prompts)
    used, places = sum(batch.inputs for batch in batches), sum(batch.text_ids.numel() for batch in batches)
    assert shared + images_used <= used <= apart + images_used
    assert 0.95 * places <= used <= places
    widths = [batch.text_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_inputs_by_hand() -> None:
    """One plan 5 6 | 7 8 9 and one image 1 2 3 | 40 41: the last target is no input, the image's codes stand apart."""
    image = np.array([[40, 41]])
    (batch,) = micro_batches(Sequences([np.array([5, 6])], [np.array([7, 8, 9])], [np.array([1, 2, 3])], image), 8)
    assert batch.text_ids.tolist() == [[5, 6, 7, 8], [1, 2, 3, 0]]
    assert (batch.code_ids.tolist(), batch.code_places.tolist()) == ([40], [7])
    assert (batch.semantic_ids.tolist(), batch.semantic_places.tolist()) == ([7, 8, 9], [1, 2, 3])
    assert (batch.image_ids.tolist(), batch.image_places.tolist()) == ([40, 41], [6, 7])
    assert batch.token.tolist() == [0, 1, 2, 3, 4]


def test_plans_of_one_prompt_share_it() -> None:
    """5 6 is followed by 7 8 9 or by 7 4: one row, whose second branch begins at the prompt's end again."""
    prompt = np.array([5, 6])
    none = np.empty((2, 0), int)
    samples = Sequences([prompt, prompt], [np.array([7, 8, 9]), np.array([7, 4])], [prompt, prompt], none)
    (batch,) = micro_batches(samples, 5)
    assert batch.text_ids.tolist() == [[5, 6, 7, 8, 7]]
    assert batch.branches.tolist() == [[0, 0, 1, 1, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert (batch.semantic_ids.tolist(), batch.semantic_places.tolist()) == ([7, 8, 9, 7, 4], [1, 2, 3, 1, 4])
    assert batch.inputs == 5
    apart = micro_batches(samples, 4)
    assert [each.text_ids.tolist() for each in apart] == [[[5, 6, 7, 8]], [[5, 6, 7]]]
    assert all(each.branches is None for each in apart)
