"""One decoding step over state that keeps its addresses, so that a CUDA graph can hold it."""

import torch
from torch import Tensor, nn

from actors.image_step import pick
from tests.gpu.attention import Shape, Way
from tests.gpu.measure import DEVICE
from tests.torch_trunk import TorchTrunk

GUIDANCE = 5.0


class Cache:
    """Random keys and values of all layers; one piece of memory, seen in either order."""

    def __init__(self, trunk: TorchTrunk, rows: int, shape: Shape):
        attention = trunk.model.layers[0].self_attn
        self.rows, self.shape = rows, shape
        self.heads, self.head_dim = attention.kv_size // attention.head_dim, attention.head_dim
        count = rows * shape.columns * attention.kv_size
        dtype = attention.qkv_proj.weight.dtype
        self.memory = torch.empty(2, len(trunk.model.layers), count, dtype=dtype, device=DEVICE)
        generator = torch.Generator(DEVICE).manual_seed(1)
        for half in self.memory:
            for layer in half:
                layer.normal_(generator=generator)

    def layer(self, index: int, head_major: bool) -> tuple[Tensor, Tensor]:
        """Keys and values, each (R, C, H, D)."""
        keys, values = (half[index] for half in self.memory)
        if head_major:
            order = (self.rows, self.heads, self.shape.columns, self.head_dim)
            return keys.view(order).transpose(1, 2), values.view(order).transpose(1, 2)
        order = (self.rows, self.shape.columns, self.heads, self.head_dim)
        return keys.view(order), values.view(order)


class Step:
    """A step like `image_step.next_token`, attention in one of several ways; `logits`: (R / 2, codes)."""

    def __init__(self, trunk: TorchTrunk, cache: Cache, way: Way):
        self.trunk, self.cache, self.way = trunk, cache, way
        rows = cache.rows
        self.row = torch.arange(rows, device=DEVICE)
        self.lengths = torch.full((rows,), cache.shape.filled, device=DEVICE) - (self.row % 17 if way.ragged else 0)
        self.token = torch.arange(rows // 2, device=DEVICE)
        self.uniform = torch.full((rows // 2, 1), 0.5, dtype=torch.float64, device=DEVICE)
        self.logits = torch.zeros(rows // 2, trunk.generation_head.vision_head.out_features, device=DEVICE)
        heads = trunk.model.layers[0].self_attn.q_size // cache.head_dim
        self.query = torch.randn(rows, heads, cache.head_dim, device=DEVICE).to(cache.memory.dtype)

    def __call__(self) -> Tensor:
        """The next token (R / 2,) of each image."""
        prepared = self.way.prepare(self.lengths)
        hidden, residual = (
            self.trunk.generation_aligner(self.trunk.generation_embeddings(self.token)).repeat(2, 1),
            None,
        )
        for index, layer in enumerate(self.trunk.model.layers):
            if residual is None:
                residual, hidden = hidden, layer.input_layernorm(hidden)
            else:
                hidden, residual = layer.input_layernorm(hidden, residual)
            hidden = self._attend(index, layer.self_attn, hidden, prepared)
            hidden, residual = layer.post_attention_layernorm(hidden, residual)
            hidden = layer.mlp(hidden)
        logits = self.trunk.generation_head(self.trunk.model.norm(hidden, residual)[0]).float()
        conditional, free = logits.chunk(2)
        self.logits.copy_(free + GUIDANCE * (conditional - free))
        token = pick(self.logits, self.uniform, 1.0)
        conditional.log_softmax(-1).gather(1, token)
        return token[:, 0]

    def attention_alone(self) -> None:
        """Attention of every layer, for one query."""
        prepared = self.way.prepare(self.lengths)
        for index in range(len(self.trunk.model.layers)):
            self.way.attend(self.query, *self.cache.layer(index, self.way.head_major), prepared)

    def _attend(self, index: int, attention: nn.Module, hidden: Tensor, prepared: object) -> Tensor:
        sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        query, key, value = attention.qkv_proj(hidden)[0].split(sizes, -1)
        query, key = attention.rotary_emb(self.lengths, query, key)
        heads = (self.cache.rows, -1, attention.head_dim)
        keys, values = self.cache.layer(index, self.way.head_major)
        keys[self.row, self.lengths] = key.view(heads)
        values[self.row, self.lengths] = value.reshape(heads)
        mixed = self.way.attend(query.view(heads), keys, values, prepared)
        return attention.o_proj(mixed.reshape(self.cache.rows, -1))[0]
