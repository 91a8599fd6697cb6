"""Log-probabilities of plans and images under a Janus policy, heads computed only where a token is predicted.

Rows are padded on the right: causal attention never looks there, no mask is needed (which keeps the fast attention
kernels), and positions count from each row's first token, so padding changes no value. Only rows with several branches
after one prompt (see `packing`) come with a mask.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learner.packing import MicroBatch, Sequences, micro_batches

CHUNK = 1 << 24
"""Logits that are held in float32 at one time (64 MiB)."""


class TokenValues(NamedTuple):
    """Of the tokens that a micro-batch predicts, its S plan tokens first; float32."""

    logprobs: Tensor  # (S + J,)
    entropy: Tensor  # (S + J,) in nats; zeros, or without gradient, where that was not asked for
    contrast: Tensor  # (J,) log p(unconditional) - log p(conditional), without gradient; (0,) if not asked for


class _LogSoftmaxAt(torch.autograd.Function):
    """Log-softmax at one index per row, and the rows' entropy, in float32, chunk by chunk.

    Exact gradients for both, for the entropy if asked for. Only the logits are kept for the backward pass, in the dtype
    they came in. log_softmax().gather() would hold three float32 arrays of their size, 8 GB for 6,000 plan tokens of
    Janus-Pro.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, temperature: float, entropy: bool, sloped: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, ids)
        ctx.temperature, ctx.sloped = temperature, sloped
        values = torch.zeros(len(ids), dtype=torch.float32, device=logits.device)
        entropies = torch.zeros_like(values)
        for rows in _chunks(logits):
            log_p = _scaled(logits[rows], temperature).log_softmax(-1)
            values[rows] = log_p.gather(1, ids[rows, None])[:, 0]
            if entropy:
                entropies[rows] = -torch.linalg.vecdot(log_p.exp(), log_p)
        if not sloped:
            ctx.mark_non_differentiable(entropies)
        return values, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, entropy_grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids = ctx.saved_tensors
        out = torch.empty_like(logits)
        for rows in _chunks(logits):
            scaled = _scaled(logits[rows], ctx.temperature)
            p = scaled.softmax(-1)
            slope = _entropy_slope(scaled, p) if ctx.sloped else None
            scale = grad[rows, None] / ctx.temperature
            gradient = p.mul_(-scale).scatter_add_(1, ids[rows, None], scale)
            out[rows] = (
                gradient if slope is None else gradient.addcmul_(slope, entropy_grad[rows, None] / ctx.temperature)
            )
        return out, None, None, None, None


def _entropy_slope(scaled: Tensor, p: Tensor) -> Tensor:
    """dH / dlogit = -p (log p + H) of every row, for logits at temperature 1."""
    log_p = scaled.log_softmax(-1)
    return log_p.sub_(torch.linalg.vecdot(p, log_p)[:, None]).mul_(p).neg_()


class _Rows(torch.autograd.Function):
    """`index_select(0, places)` whose gradient adds up in one order: the branches of a prompt share its last place, and
    on a GPU index_select's own gradient adds with atomics, in bfloat16."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = hidden.shape
        return hidden.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        out = grad.new_zeros(ctx.shape)
        if grad.is_cuda:  # sorts the places
            return out.index_put_((places,), grad, accumulate=True), None
        return out.index_add_(0, places, grad), None  # in their order


def _chunks(logits: Tensor) -> list[slice]:
    step = max(1, CHUNK // logits.shape[1])
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1.0 else logits.float() / temperature


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """(B, L) float32 log-softmax of logits / temperature at ids; logits (B, L, V) are already aligned with ids (B, L).

    Computed in float32 whatever the logits' dtype, differentiable once.
    """
    values, _ = _LogSoftmaxAt.apply(logits.flatten(0, -2), ids.long().flatten(), temperature, False, False)
    return values.view(ids.shape)


def sequence_logprobs(
    model: nn.Module,
    batch: MicroBatch,
    temperature: float = 1.0,
    entropy: bool = True,
    guidance: float = 1.0,
    *,
    sloped: bool = False,
    contrast: bool = False,
) -> TokenValues:
    """Values of the tokens that `batch` predicts, under the distribution softmax(logits / temperature).

    model: JanusForConditionalGeneration; batch: on its device. Every module of the language path runs, on no rows if
    need be (see `packing`). Memory: one row of logits per predicted token, none for prompts and padding.
    guidance: w of images, whose logits are uncond + w (cond - uncond) where the batch has unconditional rows.
    sloped: the entropy has a gradient. contrast: of the images' two rows, which the batch must have then.
    """
    text = model.get_input_embeddings()(batch.text_ids)
    codes = model.prepare_embeddings_for_image_generation(batch.code_ids)
    embeds = text.flatten(0, 1).index_copy(0, batch.code_places, codes.to(text.dtype)).view_as(text)
    trunk = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=None if batch.branches is None else _visible(batch.branches),
        position_ids=batch.positions,
        use_cache=False,
    )
    hidden = trunk.last_hidden_state.flatten(0, 1)
    plans = model.lm_head(_Rows.apply(hidden, batch.semantic_places))
    drawn = torch.cat([batch.image_places, batch.unconditional_places])  # one call: ZeRO-3 counts them
    images = model.model.generation_head(hidden.index_select(0, drawn))
    difference = images.new_empty(0, dtype=torch.float32)
    if len(batch.unconditional_places):
        if contrast:
            with torch.no_grad():
                rows = token_logprobs(images.unflatten(0, (2, -1)), batch.image_ids.expand(2, -1), temperature)
            difference = rows[1] - rows[0]
        conditional, unconditional = images.float().tensor_split([len(batch.image_places)])
        images = unconditional + guidance * (conditional - unconditional)
    pairs = [
        _LogSoftmaxAt.apply(plans, batch.semantic_ids, temperature, entropy, sloped),
        _LogSoftmaxAt.apply(images, batch.image_ids, temperature, entropy, sloped),
    ]
    return TokenValues(*map(torch.cat, zip(*pairs, strict=True)), difference)


def _visible(branches: Tensor) -> Tensor:
    """(R, 1, T, T) bool: an input sees what stands before it in its prompt and in its own branch.

    Padding counts as prompt: nothing stands behind it, and it sees the prompt, so that its softmax has a value.
    """
    seen, seeing = branches[:, None, None, :], branches[:, None, :, None]
    return ((seen == 0) | (seen == seeing)).tril()


@torch.inference_mode()
def score_rollouts(
    model: nn.Module,
    samples: Sequences,
    tokens_per_batch: int,
    temperature: float = 1.0,
    guidance: float = 1.0,
    pad_id: int | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Log-probs of N >= 1 samples: N arrays (plan length,) and (N, I), float32. No gradient.

    pad_id: of the unconditional rows; None: log-probs of images are those of the conditional distribution.
    """
    image_ids = samples.image_ids
    borders = np.cumsum([len(ids) for ids in samples.semantic_ids])
    plan_tokens = int(borders[-1])
    device = model.lm_head.weight.device
    values = torch.empty(plan_tokens + image_ids.size, dtype=torch.float32, device=device)
    for batch in micro_batches(samples, tokens_per_batch, pad_id):
        batch = batch.to(device)
        values[batch.token] = sequence_logprobs(model, batch, temperature, False, guidance).logprobs
    found = values.cpu().numpy()
    return np.split(found[:plan_tokens], borders[:-1]), found[plan_tokens:].reshape(image_ids.shape)
