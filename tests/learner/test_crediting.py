"""Token credit and the entropy term in the loss: gradients as plain autograd gives them, sample by sample."""

import numpy as np
import pytest
import torch

from learner.bicot_grpo import token_losses
from learner.crediting import Tokens, credited
from learner.logprobs import sequence_logprobs
from learner.packing import Sequences, idle_batch, micro_batches
from t2ir1_ray.janus.policy import freeze
from t2ir1_ray.records.schema import LearnerBatch
from tests.learner.samples import BETA, PAD_ID, SAMPLES, naive_loss, random_batch
from tests.tiny_janus import tiny_model

KINDS = ("none", "entropy", "guidance", "similarity", "critical")
PULL = (0.3, -0.2)


def gradients(data: LearnerBatch, kind: str, budget: int, guidance: float) -> dict[str, torch.Tensor]:
    """Of what `LearnerRank.step` minimises, summed over micro-batches."""
    model = tiny_model(0)
    parameters = freeze(model)
    tokens = Tokens.of(data, torch.device("cpu"))
    for batch in micro_batches(Sequences.of(data), budget, PAD_ID if guidance != 1 else None):
        own = tokens.at(batch.token)
        values = sequence_logprobs(model, batch, guidance=guidance, sloped=True, contrast=kind == "guidance")
        advantages, weights = credited(kind, batch, values, own)
        losses = token_losses(values.logprobs, own.reference, advantages, BETA)
        pull = torch.tensor(PULL).repeat_interleave(torch.tensor([len(batch.semantic_ids), len(batch.image_ids)]))
        ((weights * losses.loss).sum() - (own.weights * pull * values.entropy).sum()).backward()
    return {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("budget", [1, 150])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_plain_autograd(kind: str, budget: int) -> None:
    data, guidance = random_batch(3), 2.0 if kind == "guidance" else 1.0
    found = gradients(data, kind, budget, guidance)
    model = tiny_model(0)
    parameters = freeze(model)
    for row in range(SAMPLES):
        naive_loss(model, data, row, guidance=guidance, credit=kind, pull=PULL)[0].backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_kinds_differ_in_what_they_move() -> None:
    """On plans only entropy; only critical changes token weights. Means stay: none makes the step longer."""
    data = random_batch(3)
    (batch, *_) = [b for b in micro_batches(Sequences.of(data), 10_000, PAD_ID) if len(b.image_ids)]
    own = Tokens.of(data, torch.device("cpu")).at(batch.token)
    with torch.no_grad():
        values = sequence_logprobs(tiny_model(0), batch, guidance=2.0, contrast=True)
    plans = len(batch.semantic_ids)
    for kind in KINDS:
        advantages, weights = credited(kind, batch, values, own)
        assert torch.equal(advantages[:plans], own.advantages[:plans]) == (kind != "entropy" or not plans)
        assert torch.equal(advantages[plans:], own.advantages[plans:]) == (kind == "none")
        assert torch.equal(weights, own.weights) == (kind != "critical")
        if kind == "guidance":
            rows = (advantages / own.advantages)[plans:].view(len(batch.image_lengths), -1)
            torch.testing.assert_close(rows.mean(1), torch.ones(len(rows)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_idle_batch_has_nothing_to_credit(kind: str) -> None:
    batch = idle_batch()
    values = sequence_logprobs(tiny_model(0), batch, sloped=True, contrast=True)
    own = Tokens.of(random_batch(0), torch.device("cpu")).at(batch.token)
    advantages, weights = credited(kind, batch, values, own)
    assert len(advantages) == len(weights) == 0
    ((weights * values.logprobs).sum() - values.entropy.sum()).backward()


def test_a_batch_without_distances_counts_all_tokens_alike() -> None:
    data = random_batch(0)
    bare = LearnerBatch(**{**vars(data), "image_distance": [np.empty(0, np.float32)] * SAMPLES})
    through_arrow = LearnerBatch.from_arrow(bare.to_arrow())
    assert (Tokens.of(through_arrow, torch.device("cpu")).distances == 1).all()
