"""What the image decoder keeps on the device between two tokens, at addresses that a CUDA graph can hold."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from actors.vllm_model import JanusTrunk


class KeyValues(NamedTuple):
    """Each (layers, R, kv heads, C, head_dim): row r holds its tokens from column 0 on."""

    keys: Tensor
    values: Tensor


class KeyValueMemory:
    """One piece of memory for keys and values, seen in the shape that a call needs."""

    def __init__(self, trunk: "JanusTrunk"):
        attention = trunk.model.layers[0].self_attn
        weight = trunk.model.embed_tokens.weight
        self.layers, self.head_dim = len(trunk.model.layers), attention.head_dim
        self.heads = attention.kv_size // attention.head_dim
        self.memory = torch.empty(2, 0, dtype=weight.dtype, device=weight.device)

    def holds(self, rows: int, columns: int) -> bool:
        return math.prod(self._shape(rows, columns)) <= self.memory.shape[1]

    def grow(self, rows: int, columns: int) -> None:
        """Make room for so many; what was in it is lost, and views of it must be gone."""
        dtype, device = self.memory.dtype, self.memory.device
        self.memory = self.memory[:, :0].clone()  # the old one is free before the new one is taken
        count = math.prod(self._shape(rows, columns))
        self.memory = torch.zeros(2, count, dtype=dtype, device=device)  # zeros: no NaN where a mask hides

    def view(self, rows: int, columns: int) -> KeyValues:
        shape = self._shape(rows, columns)
        keys, values = self.memory[:, : math.prod(shape)]
        return KeyValues(keys.view(shape), values.view(shape))

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        return self.layers, rows, self.heads, columns, self.head_dim


class ImageState:
    """B images under way in R rows: under guidance B conditional ones and B unconditional ones behind them."""

    def __init__(self, trunk: "JanusTrunk", cache: KeyValues, images: int, num_tokens: int):
        _, rows, _, columns, _ = cache.keys.shape
        weight = trunk.model.embed_tokens.weight
        device = weight.device
        codes = trunk.generation_embeddings.num_embeddings
        self.cache = cache
        self.images = images
        self.columns = torch.arange(columns, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)  # filled columns of each row
        self.drawn = torch.zeros((), dtype=torch.int64, device=device)  # image tokens so far
        self.uniforms = torch.zeros(images, num_tokens, dtype=torch.float64, device=device)
        self.ids = torch.zeros(images, num_tokens, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(images, num_tokens, dtype=torch.float32, device=device)
        self.embeddings = torch.empty(codes, weight.shape[1], dtype=weight.dtype, device=device)  # of image codes

    def begin(self, rows: Sequence[Sequence[int]], uniforms: Tensor) -> None:
        """A new call: prompts as long as these rows, whose tokens are to be filled in; uniforms: (B, I)."""
        self.lengths.copy_(torch.tensor([len(row) for row in rows]))
        self.drawn.zero_()
        self.uniforms.copy_(uniforms)


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
