"""Log-probabilities of plans and images under a Janus policy, heads computed only where a token is predicted.

Plan and image are two sequences with prompts of their own. Rows are padded on the right: causal attention never looks
there, and positions count from each row's first token, so padding changes no value.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from learner.packing import Segment, segments


class TokenValues(NamedTuple):
    """(T,) float32 of T tokens, row after row."""

    logprobs: Tensor
    entropy: Tensor  # no gradient


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """(B, L) float32 log-softmax of logits (B, L, V) at ids (B, L), which are already aligned."""
    logits = logits.float()
    return logits.gather(-1, ids.long()[..., None])[..., 0] - logits.logsumexp(-1)


def sequence_logprobs(model: nn.Module, segment: Segment, temperature: float = 1.0) -> TokenValues:
    """Values of the tokens that `segment` predicts, under the distribution softmax(logits / temperature).

    model: JanusForConditionalGeneration. Memory: one row of logits per predicted token, none for prompts.
    """
    device = model.lm_head.weight.device
    embed = model.get_input_embeddings()
    # One call for all rows: under ZeRO-3 every module call gathers, so its number must not depend on the rows.
    prompt_ids = torch.as_tensor(np.concatenate(segment.prompts), dtype=torch.long, device=device)
    prompts = embed(prompt_ids).split([len(prompt) for prompt in segment.prompts])
    ids = torch.as_tensor(np.concatenate(segment.targets), dtype=torch.long, device=device)
    lengths = [len(target) for target in segment.targets]
    embedded = model.prepare_embeddings_for_image_generation(ids) if segment.image else embed(ids)
    rows = [torch.cat(pair) for pair in zip(prompts, embedded.split(lengths), strict=True)]
    hidden = model.model.language_model(
        inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False
    ).last_hidden_state
    first = [len(prompt) - 1 for prompt in segment.prompts]
    predicting = torch.cat([hidden[row, at : at + n] for row, (at, n) in enumerate(zip(first, lengths, strict=True))])
    head = model.model.generation_head if segment.image else model.lm_head
    logits = head(predicting).float() / temperature
    with torch.no_grad():
        entropy = torch.distributions.Categorical(logits=logits, validate_args=False).entropy()
    return TokenValues(token_logprobs(logits[None], ids[None])[0], entropy)


@torch.inference_mode()
def score_rollouts(
    model: nn.Module,
    semantic_prompt_ids: Sequence[np.ndarray],
    semantic_ids: Sequence[np.ndarray],
    image_prompt_ids: Sequence[np.ndarray],
    image_ids: np.ndarray,
    tokens_per_batch: int,
    temperature: float = 1.0,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Log-probs of N samples: N arrays (plan length,) and (N, I), float32."""
    semantic: list[np.ndarray] = [np.empty(0, np.float32)] * len(semantic_ids)
    image = np.empty(image_ids.shape, np.float32)
    for segment in segments(semantic_prompt_ids, semantic_ids, image_prompt_ids, image_ids, tokens_per_batch):
        values = sequence_logprobs(model, segment, temperature).logprobs.float().cpu().numpy()
        borders = np.cumsum([len(target) for target in segment.targets])[:-1]
        for row, part in zip(segment.rows, np.split(values, borders), strict=True):
            if segment.image:
                image[row] = part
            else:
                semantic[row] = part
    return semantic, image
