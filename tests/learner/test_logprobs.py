"""Log-probs against the official code's numbers, plain autograd, and one unpadded pass per sample."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner import logprobs
from learner.logprobs import score_rollouts, sequence_logprobs, token_logprobs
from learner.packing import Sequences, idle_batch, micro_batches
from tests.learner.samples import PAD_ID, SAMPLES, naive_logprobs, random_batch
from tests.tiny_janus import tiny_model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "logprob_public.json").read_text())["cases"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["scenario"])
def test_logprobs_equal_the_official_ones(case: dict[str, Any]) -> None:
    start = case["prompt_length"]
    logits = torch.tensor(case["logits"])[:, start - 1 : -1]
    ids = torch.tensor(case["image_ids"]) if case["segment"] == "image" else torch.tensor(case["ids"])[:, start:]
    expected = torch.tensor(case["expected"]["completion_logps"])
    torch.testing.assert_close(token_logprobs(logits, ids), expected, rtol=1e-5, atol=1e-4)


@given(st.sampled_from([1, 40, 1 << 24]), st.sampled_from([0.7, 1.0]), st.integers(0, 2**32 - 1))
def test_chunks_give_the_values_and_gradients_of_log_softmax(chunk: int, temperature: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(2, 5, 11, generator=rng) + 100).requires_grad_()
    ids = torch.randint(0, 11, (2, 5), generator=rng)
    outer = torch.randn(2, 5, generator=rng)
    expected = (logits.double() / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK", chunk)
        found = token_logprobs(logits, ids, temperature)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(found, logits, outer)
    (wanted,) = torch.autograd.grad(expected, logits, outer.double())
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-6)


@given(st.sampled_from([1, 40, 1 << 24]), st.sampled_from([0.7, 1.0]), st.integers(0, 2**32 - 1))
def test_entropies_have_the_gradient_of_autograd(chunk: int, temperature: float, seed: int) -> None:
    """Together with that of the log-probs, which pass through the same function; one logit has no probability left."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(10, 11, generator=rng)
    logits[0, 0] = -1e4
    logits.requires_grad_()
    ids = torch.randint(0, 11, (10,), generator=rng)
    outer, inner = torch.randn(2, 10, generator=rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK", chunk)
        values, entropies = logprobs._LogSoftmaxAt.apply(logits, ids, temperature, True, True)
        (gradient,) = torch.autograd.grad((outer * values + inner * entropies).sum(), logits)
    expected = torch.distributions.Categorical(logits=logits.double() / temperature)
    torch.testing.assert_close(entropies, expected.entropy().float(), rtol=1e-4, atol=1e-5)
    (wanted,) = torch.autograd.grad((outer * expected.log_prob(ids) + inner * expected.entropy()).sum(), logits)
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-3, atol=1e-5)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.full((1, 1, 1000), 2.0, dtype=torch.bfloat16)
    assert token_logprobs(logits, torch.tensor([[3]])).item() == pytest.approx(-np.log(1000), abs=1e-5)


@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_logprobs_do_not_depend_on_padding_or_batching(budget: int) -> None:
    model, data = tiny_model(0), random_batch(0)
    inputs = Sequences.of(data)
    semantic, image = score_rollouts(model, inputs, tokens_per_batch=budget)
    for row in range(SAMPLES):
        with torch.no_grad():
            text, drawn = naive_logprobs(model, vars(data), row)
        np.testing.assert_allclose(semantic[row], text.numpy(), atol=1e-5)
        np.testing.assert_allclose(image[row], drawn.numpy(), atol=1e-5)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_guided_logprobs_are_those_of_the_mixed_logits(budget: int) -> None:
    model, data = tiny_model(0), random_batch(0)
    inputs = Sequences.of(data)
    semantic, image = score_rollouts(model, inputs, tokens_per_batch=budget, guidance=5.0, pad_id=PAD_ID)
    plain = score_rollouts(model, inputs, tokens_per_batch=budget)
    for row in range(SAMPLES):
        with torch.no_grad():
            _, drawn = naive_logprobs(model, vars(data), row, guidance=5.0)
        np.testing.assert_allclose(image[row], drawn.numpy(), atol=1e-4)
        np.testing.assert_allclose(semantic[row], plain[0][row], atol=1e-6)
    assert np.abs(image - plain[1]).max() > 0.1


@pytest.mark.parametrize("budget", [1, 10_000])
def test_contrast_is_what_the_prompt_adds_to_each_token(budget: int) -> None:
    """A guidance of 0 leaves the unconditional row alone, and 1 the conditional one."""
    model, data = tiny_model(0), random_batch(0)
    found = torch.empty(data.image_ids.size)
    for batch in micro_batches(Sequences.of(data), budget, PAD_ID):
        values = sequence_logprobs(model, batch, guidance=5.0, contrast=True)
        assert not values.contrast.requires_grad
        found[batch.token[len(batch.semantic_ids) :] - sum(map(len, data.semantic_ids))] = values.contrast
    for row, contrast in enumerate(found.view(data.image_ids.shape)):
        with torch.no_grad():
            bare, prompted = (naive_logprobs(model, vars(data), row, guidance)[1] for guidance in (0.0, 1.0))
        torch.testing.assert_close(contrast, bare - prompted, rtol=1e-4, atol=1e-4)


def test_gradients_do_not_depend_on_padding_or_batching() -> None:
    model, data = tiny_model(0), random_batch(1)
    inputs = Sequences.of(data)
    weights = torch.randn(sum(map(len, data.semantic_ids)) + data.image_ids.size)
    watched = [model.lm_head.weight, model.get_input_embeddings().weight]

    def gradients(budget: int) -> list[torch.Tensor]:
        model.zero_grad()
        for batch in micro_batches(inputs, budget):
            (sequence_logprobs(model, batch).logprobs * weights[batch.token]).sum().backward()
        return [parameter.grad.clone() for parameter in watched]

    for alone, together in zip(gradients(1), gradients(10_000), strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_entropy_and_temperature() -> None:
    model, data = tiny_model(0), random_batch(0)
    (batch,) = micro_batches(
        Sequences(data.semantic_prompt_ids[:1], data.semantic_ids[:1], [], data.image_ids[:0]), 10_000
    )
    values = sequence_logprobs(model, batch, temperature=2.0)
    ids = torch.from_numpy(np.concatenate([data.semantic_prompt_ids[0], data.semantic_ids[0]]).astype(np.int64))
    hidden = model.model.language_model(input_ids=ids[None]).last_hidden_state
    logits = model.lm_head(hidden)[0, len(data.semantic_prompt_ids[0]) - 1 : -1] / 2.0
    expected = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(values.entropy, expected.entropy(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values.logprobs, expected.log_prob(batch.semantic_ids), rtol=1e-4, atol=1e-5)
    assert not values.entropy.requires_grad


def test_an_idle_batch_runs_every_module_and_gives_zero_gradients() -> None:
    model = tiny_model(0)
    values = sequence_logprobs(model, idle_batch())
    assert len(values.logprobs) == 0
    values.logprobs.sum().backward()
    used = {"model.language_model", "lm_head", "model.generation_head"}
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(used)):
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
