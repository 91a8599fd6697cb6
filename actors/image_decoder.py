"""The token-CoT: image tokens by guided decoding through the text engine's own modules.

A static KV cache, one prefill, then one forward pass per image token; nothing in the loop waits for the device.
Prompts are padded on the left and every row counts positions from its own first token, so an image does not depend
on the prompts that it shares a batch with.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.janus.modeling_janus import JanusVQVAE

if TYPE_CHECKING:
    from actors.vllm_model import JanusTrunk

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, which plans anew for every length, and here every token is one: see `startup.take_device`."""


class ImageTokens(NamedTuple):
    """B images of I tokens."""

    ids: Tensor  # (B, I) int64
    logprobs: Tensor  # (B, I) float32, under the conditional distribution, or the guided one that was sampled


class ImageDecoder:
    """Samples image tokens from softmax((uncond + w (cond - uncond)) / temperature) (Janus-Pro, equation of CFG)."""

    def __init__(self, trunk: "JanusTrunk", pad_id: int, num_tokens: int):
        self.trunk = trunk
        self.pad_id = pad_id
        self.num_tokens = num_tokens

    @torch.inference_mode()
    @sdpa_kernel(KERNELS)
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        unconditional: Sequence[Sequence[int]],
        seeds: Sequence[int],
        guidance: float,
        temperature: float,
        guided_logprobs: bool = False,
    ) -> ImageTokens:
        """One image per prompt (each ending in <begin_of_image>).

        `unconditional`: the row that guidance subtracts, as long as its prompt; unused when `guidance` is 1.
        Each image has a random stream of its own, from its seed. `temperature=0`: greedy.
        """
        guided = guidance != 1.0
        batch = len(prompts)
        rows = [*prompts, *unconditional] if guided else list(prompts)
        device = self.trunk.lm_head.weight.device
        ids, padding = _left_pad(rows, self.pad_id, device)
        cache = _StaticCache(self.trunk, padding, ids.shape[1] + self.num_tokens)
        uniforms = _uniforms(seeds, self.num_tokens).to(device)

        hidden = cache.forward(self.trunk.model.embed_tokens(ids.flatten()).view(*ids.shape, -1))[:, -1]
        tokens, logprobs = [], []
        for step in range(self.num_tokens):
            logits = self.trunk.generation_head(hidden).float()
            conditional = logits[:batch]
            mixed = logits[batch:] + guidance * (conditional - logits[batch:]) if guided else conditional
            token = _pick(mixed, uniforms[:, step], temperature)
            tokens.append(token)
            scaled = (mixed if guided_logprobs else conditional) / (temperature or 1.0)
            logprobs.append(scaled.log_softmax(-1).gather(1, token[:, None])[:, 0])
            if step + 1 < self.num_tokens:
                embedded = self.embed(token)
                hidden = cache.forward(embedded.repeat(2, 1)[:, None] if guided else embedded[:, None])[:, -1]
        return ImageTokens(torch.stack(tokens, 1), torch.stack(logprobs, 1))

    def embed(self, image_ids: Tensor) -> Tensor:
        """Input embeddings (..., hidden) of image tokens (...)."""
        return self.trunk.generation_aligner(self.trunk.generation_embeddings(image_ids))


class _StaticCache:
    """Keys and values of all layers for a fixed number of rows and columns, and the forward pass that fills them."""

    def __init__(self, trunk: "JanusTrunk", padding: Tensor, columns: int):
        """`padding`: (R,) number of padding tokens on the left of each row."""
        self.layers = trunk.model.layers
        self.norm = trunk.model.norm
        attention = self.layers[0].self_attn
        self.head_dim = attention.head_dim
        self.kv_heads = attention.kv_size // self.head_dim
        weight = trunk.model.embed_tokens.weight
        shape = (len(self.layers), len(padding), self.kv_heads, columns, self.head_dim)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.padding = padding
        self.columns = torch.arange(columns, device=weight.device)
        self.filled = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """Final hidden states of the next columns. hidden: (R, C, H) embeddings -> (R, C, H)."""
        rows, count, width = hidden.shape
        start, end = self.filled, self.filled + count
        columns = self.columns[start:end]
        positions = (columns - self.padding[:, None]).clamp_min(0).flatten()
        visible = (self.columns[:end] <= columns[:, None]) & (self.columns[:end] >= self.padding[:, None, None])
        # A padding query sees itself, so that its softmax has a value; no real token ever sees it.
        mask = (visible | (self.columns[:end] == columns[:, None]))[:, None]
        hidden, residual = hidden.reshape(rows * count, width), None
        for index, layer in enumerate(self.layers):
            if residual is None:
                residual, hidden = hidden, layer.input_layernorm(hidden)
            else:
                hidden, residual = layer.input_layernorm(hidden, residual)
            hidden = self._attend(index, layer.self_attn, hidden, positions, mask, (rows, start, end))
            hidden, residual = layer.post_attention_layernorm(hidden, residual)
            hidden = layer.mlp(hidden)
        self.filled = end
        return self.norm(hidden, residual)[0].view(rows, count, width)

    def _attend(self, index, attention, hidden, positions, mask, span) -> Tensor:
        rows, start, end = span
        sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        query, key, value = attention.qkv_proj(hidden)[0].split(sizes, -1)
        query, key = attention.rotary_emb(positions, query.contiguous(), key.contiguous())
        heads = (rows, end - start, -1, self.head_dim)
        self.keys[index, :, :, start:end] = key.view(heads).transpose(1, 2)
        self.values[index, :, :, start:end] = value.reshape(heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            query.view(heads).transpose(1, 2),
            self.keys[index, :, :, :end],
            self.values[index, :, :, :end],
            attn_mask=mask,
            enable_gqa=attention.q_size != attention.kv_size,
        )
        return attention.o_proj(mixed.transpose(1, 2).reshape(rows * (end - start), -1))[0]


def to_pixels(vq: JanusVQVAE, image_ids: Tensor) -> Tensor:
    """VQ decoding: (B, I) int64 -> (B, H, W, 3) uint8 on the CPU, rounded down as in the official code."""
    decoded = vq.decode(image_ids).float().permute(0, 2, 3, 1)
    return ((decoded + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).cpu()


def _left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(R, C) int64 ids and (R,) number of padding tokens."""
    width = max(map(len, rows))
    padding = torch.tensor([width - len(row) for row in rows])
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(map(int, row)) for row in rows])
    return ids.to(device), padding.to(device)


def _uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """(B, count) float64 in [0, 1): row b depends on seeds[b] alone."""
    return torch.stack(
        [torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    )


def _pick(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Inverse-CDF sampling, one uniform number per row: (B, V) float32, (B,) float64 -> (B,) int64."""
    if temperature == 0:
        return logits.argmax(-1)
    cdf = (logits / temperature).double().softmax(-1).cumsum(-1)
    index = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
    return index.clamp_max(logits.shape[-1] - 1)
