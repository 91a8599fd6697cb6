"""What the loss needs of every token of a batch, and token credit where a micro-batch has just been computed.

A plan or an image is never cut between micro-batches, so that what credit needs of a sample is there; what it needs of
a group comes with the batch (`LearnerBatch.image_distance`).
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learner.logprobs import TokenValues
from learner.packing import MicroBatch, in_token_order
from learner.token_credit import critical_tokens, entropy_credit, guidance_credit, running_confidence
from t2ir1_ray.records.schema import LearnerBatch


class Tokens(NamedTuple):
    """What the loss needs of each token: (K,) float32 in the order of `packing`."""

    advantages: Tensor
    weights: Tensor
    sampled: Tensor  # log-probs under the sampling policy
    reference: Tensor  # log-probs under the reference
    distances: Tensor  # of image tokens to those of their group; 1 for plans and where nobody asks

    @classmethod
    def of(cls, data: LearnerBatch, device: torch.device) -> Self:
        lengths, width = [len(ids) for ids in data.semantic_ids], data.image_ids.shape[1]

        def spread(semantic: np.ndarray, image: np.ndarray) -> np.ndarray:  # two values per sample
            return np.concatenate([np.repeat(semantic, lengths), np.repeat(image, width)])

        plans = sum(lengths)
        distances = np.ones(plans + data.image_ids.size, np.float32)
        if any(map(len, data.image_distance)):
            distances[plans:] = np.concatenate(data.image_distance)
        columns = (
            spread(data.semantic_advantage, data.image_advantage),
            spread(data.semantic_token_weight, data.image_token_weight),
            in_token_order(data.semantic_logprobs, data.image_logprobs),
            in_token_order(data.semantic_ref_logprobs, data.image_ref_logprobs),
            distances,
        )
        return cls(*(torch.from_numpy(column).to(device) for column in columns))

    def at(self, token: Tensor) -> Self:
        return type(self)(*(column[token] for column in self))


def sample_of(data: LearnerBatch, token: int) -> list[str]:
    """What errors call the sample of a token, by the token's number in the order of `Tokens`; [] for any other."""
    lengths, width = [len(ids) for ids in data.semantic_ids], data.image_ids.shape[1]
    rows = np.concatenate([np.repeat(np.arange(len(data)), count) for count in (lengths, width)])
    return [f"sample {data.sample[row]} of prompt {data.prompt_id[row]}" for row in rows[token : token + 1]]


@torch.no_grad()
def credited(kind: str, batch: MicroBatch, values: TokenValues, own: Tokens) -> tuple[Tensor, Tensor]:
    """(advantages, weights) of the tokens that `batch` predicts, each (S + J,), by `learner.token_credit`.

    own: of the same tokens as `values`. kind: `learner.token_credit`; with none both are own's.
    """
    plans, images = len(batch.semantic_ids), len(batch.image_lengths)
    if kind == "none" or not len(own.weights):
        return own.advantages, own.weights
    if kind == "entropy":
        lengths = (*batch.semantic_lengths, *batch.image_lengths)
        entropies, advantages = (_padded(values_, lengths) for values_ in (values.entropy, own.advantages))
        mask = torch.arange(entropies.shape[1]) < torch.tensor(lengths)[:, None]
        factors = entropy_credit(entropies, advantages, mask.to(entropies.device))
        return own.advantages * _flat(factors, lengths), own.weights
    if kind == "similarity":
        return own.advantages * own.distances, own.weights
    if not images:
        return own.advantages, own.weights

    def of_images(column: Tensor) -> Tensor:
        return column.view(images, -1)

    ones = torch.ones(plans, device=own.weights.device)
    if kind == "guidance":
        factors = guidance_credit(of_images(values.contrast))
        return own.advantages * torch.cat([ones, factors.flatten()]), own.weights
    logprobs, entropies, reference, distances = (
        of_images(column[plans:]) for column in (values.logprobs, values.entropy, own.reference, own.distances)
    )
    gains = running_confidence(logprobs, reference)
    factors = critical_tokens(entropies, distances)
    return own.advantages * torch.cat([ones, gains.flatten()]), own.weights * torch.cat([ones, factors.flatten()])


def _padded(column: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """(N, L): a row per plan and image."""
    return pad_sequence(column.split(lengths), batch_first=True)


def _flat(rows: Tensor, lengths: tuple[int, ...]) -> Tensor:
    return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])
