"""Reading prompts and drawing image tokens: functions of the trunk and an `ImageState`, nothing of which waits."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from actors.image_state import ImageState, KeyValues

if TYPE_CHECKING:
    from actors.vllm_model import JanusTrunk

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query (R, N, heads, D), key and value (R, N, kv heads, D)) -> (R, N, heads, D); keeps key and value."""


class Draw(NamedTuple):
    """How a token is drawn. temperature 0: greedy. guided_logprobs: those of the guided distribution."""

    guidance: float
    temperature: float
    guided_logprobs: bool


def read_prompts(
    trunk: "JanusTrunk",
    state: ImageState,
    prompts: Sequence[Sequence[int]],
    unconditional: Sequence[Sequence[int]],
    pad_id: int,
) -> Tensor:
    """Fill the cache with the prompts' tokens; final hidden states (R, H) of their last ones."""
    images = len(prompts)
    hidden = _prefill(trunk, _rows(state.cache, 0, images), prompts, pad_id)
    if not unconditional:
        return hidden
    longest = max(unconditional, key=len)
    alike = len(longest) > 1 and all(list(row[:-1]) == list(longest[: len(row) - 1]) for row in unconditional)
    if not alike:
        return torch.cat([hidden, _prefill(trunk, _rows(state.cache, images, None), unconditional, pad_id)])
    # Causal attention: what shorter rows begin with is what the longest one begins with.
    free = _rows(state.cache, images, None)
    _prefill(trunk, _rows(state.cache, images, images + 1), [longest[:-1]], pad_id)
    for cached in free:
        cached[:, 1:, :, : len(longest)] = cached[:, :1, :, : len(longest)]
    last = torch.tensor([row[-1] for row in unconditional], device=hidden.device)
    lengths = state.lengths[images:] - 1
    embedded = trunk.model.embed_tokens(last)
    return torch.cat([hidden, one_token(trunk, free, embedded, lengths, state.columns[: len(longest)])])


def next_token(trunk: "JanusTrunk", state: ImageState, draw: Draw, end: int) -> None:
    """Take in the newest image token and draw the one behind it. end: columns to attend to, more than any row fills."""
    token = state.ids.gather(1, (state.drawn - 1).expand(state.images, 1))[:, 0]
    embedded = state.embeddings[token].repeat(len(state.lengths) // state.images, 1)
    hidden = one_token(trunk, state.cache, embedded, state.lengths, state.columns[:end])
    state.lengths += 1
    draw_token(trunk, state, draw, hidden)


def draw_token(trunk: "JanusTrunk", state: ImageState, draw: Draw, hidden: Tensor) -> None:
    """The next image token of every image from final hidden states (R, H)."""
    logits = trunk.generation_head(hidden).float()
    conditional, free = logits[: state.images], logits[state.images :]
    mixed = free + draw.guidance * (conditional - free) if len(free) else conditional
    at = state.drawn.expand(state.images, 1)
    token = pick(mixed, state.uniforms.gather(1, at), draw.temperature)
    scaled = (mixed if draw.guided_logprobs else conditional) / (draw.temperature or 1.0)
    state.ids.scatter_(1, at, token)
    state.logprobs.scatter_(1, at, scaled.log_softmax(-1).gather(1, token))
    state.drawn += 1


def pick(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Inverse-CDF sampling, one uniform number per row: (B, V) float32, (B, 1) float64 -> (B, 1) int64.

    In float64: sums of 16,384 probabilities in float32 lose tokens of small probability.
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    cdf = (logits / temperature).double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cdf, uniform * cdf[:, -1:], right=True).clamp_max(logits.shape[-1] - 1)


def forward(trunk: "JanusTrunk", embedded: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """Final hidden states (R, N, H) through the trunk's own modules. embedded: (R, N, H); positions: (R, N)."""
    rows, count, width = embedded.shape
    hidden, residual, flat = embedded.reshape(rows * count, width), None, positions.flatten()
    for index, layer in enumerate(trunk.model.layers):
        if residual is None:
            residual, hidden = hidden, layer.input_layernorm(hidden)
        else:
            hidden, residual = layer.input_layernorm(hidden, residual)
        attention = layer.self_attn
        sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        query, key, value = attention.qkv_proj(hidden)[0].split(sizes, -1)
        query, key = attention.rotary_emb(flat, query.contiguous(), key.contiguous())
        heads = (rows, count, -1, attention.head_dim)
        mixed = attend(index, query.view(heads), key.view(heads), value.reshape(heads))
        hidden = attention.o_proj(mixed.reshape(rows * count, -1))[0]
        hidden, residual = layer.post_attention_layernorm(hidden, residual)
        hidden = layer.mlp(hidden)
    return trunk.model.norm(hidden, residual)[0].view(rows, count, width)


def _prefill(trunk: "JanusTrunk", cache: KeyValues, rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Padded on the right, where no earlier token looks, and where later tokens overwrite what padding left."""
    device, width = cache.keys.device, max(map(len, rows))
    ids = torch.tensor([[*map(int, row), *[pad_id] * (width - len(row))] for row in rows], device=device)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)

    def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        cache.keys[index, :, :, :width] = key
        cache.values[index, :, :, :width] = value
        return _attention(query, key, value, is_causal=True).transpose(1, 2)

    positions = torch.arange(width, device=device).expand(ids.shape)
    hidden = forward(trunk, trunk.model.embed_tokens(ids.flatten()).view(*ids.shape, -1), positions, attend)
    return hidden[torch.arange(len(rows), device=device), last]


def one_token(trunk: "JanusTrunk", cache: KeyValues, embedded: Tensor, lengths: Tensor, columns: Tensor) -> Tensor:
    """Final hidden states (R, H) of one more token in each row, which goes to the column `lengths` (R,)."""
    rows, end = torch.arange(len(lengths), device=lengths.device), len(columns)
    hidden_columns = columns > lengths[:, None]
    mask = torch.zeros(hidden_columns.shape, dtype=embedded.dtype, device=lengths.device)
    mask = mask.masked_fill_(hidden_columns, float("-inf"))[:, None, None]

    def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = cache.keys[index], cache.values[index]
        keys[rows, :, lengths], values[rows, :, lengths] = key[:, 0], value[:, 0]
        return _attention(query.transpose(1, 2), keys[:, :, :end], values[:, :, :end], mask).transpose(1, 2)

    return forward(trunk, embedded[:, None], lengths[:, None], attend)[:, 0]


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """cuDNN's kernel for single tokens under a mask where a card has it: of all that torch offers it is the fastest
    there, and slow where lengths are new each time, as those of prompts are (tests/gpu/variants.py)."""
    options = {"attn_mask": mask, "is_causal": is_causal, "enable_gqa": query.shape[1] != keys.shape[1]}
    if not query.is_cuda:
        return F.scaled_dot_product_attention(query, keys, values, **options)
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *others] if mask is not None else others, set_priority=True):
        return F.scaled_dot_product_attention(query, keys, values, **options)


def _rows(cache: KeyValues, start: int, stop: int | None) -> KeyValues:
    return KeyValues(cache.keys[:, start:stop], cache.values[:, start:stop])
