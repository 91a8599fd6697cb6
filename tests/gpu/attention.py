"""Ways to attend from one new token per row to what is filled of a cache."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.measure import CUDA


@dataclass(frozen=True)
class Shape:
    """Columns of a cache: allocated, up to the next multiple of 64 behind what is filled, and filled."""

    columns: int
    near: int
    filled: int


@dataclass(frozen=True)
class Way:
    """attend: query (R, H, D), keys and values (R, C, H, D), what `prepare` made of the lengths (R,) -> (R, H, D).

    head_major: the cache lies in memory as (R, H, C, D), like the decoder's, else as (R, C, H, D).
    ragged: rows may differ in length.
    """

    name: str
    attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    prepare: Callable[[Tensor], Any] = lambda lengths: None
    head_major: bool = True
    ragged: bool = True

    def like(self, other: "Way", shape: Shape) -> Self:
        """This way on the memory and the lengths of another."""
        return replace(self, prepare=_mask(shape.near), head_major=other.head_major, ragged=other.ragged)


def ways(shape: Shape) -> Iterator[Way]:
    """All that this device and this version of torch have, the least usual last."""
    near, all_columns = _mask(shape.near), _mask(shape.columns)
    yield Way("SDPA, mask over all columns", _masked, all_columns)
    yield Way("SDPA, mask over filled columns", _masked, near)
    yield Way("SDPA, mask over filled columns, column-major", _masked, near, head_major=False)
    yield replace(PRODUCTS, prepare=near)
    end = shape.filled + 1
    for head_major in (True, False):
        order = "head-major" if head_major else "column-major"
        yield Way(
            f"SDPA without mask, equal lengths, {order}",
            lambda query, keys, values, _: _masked(query, keys[:, :end], values[:, :end], None),
            head_major=head_major,
            ragged=False,
        )
    if CUDA:
        yield Way("SDPA of cuDNN, mask over filled columns", _cudnn, near)
    if CUDA and has_lengths():
        yield Way("flash with seqused_k", _flash, _flash_lengths(shape.columns), head_major=False)


def has_lengths() -> bool:
    """Whether torch's private flash operator takes the number of filled keys of each row."""
    arguments = torch.ops.aten._flash_attention_forward.default._schema.arguments
    return any(argument.name == "seqused_k" for argument in arguments)


def _mask(columns: int) -> Callable[[Tensor], Tensor]:
    """Additive mask (R, 1, 1, columns) that leaves the columns up to each row's length."""

    def prepare(lengths: Tensor) -> Tensor:
        hidden = torch.arange(columns, device=lengths.device) > lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=torch.bfloat16, device=lengths.device)
        return mask.masked_fill_(hidden, float("-inf"))[:, None, None]

    return prepare


def _masked(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        keys, values = keys[:, : mask.shape[-1]], values[:, : mask.shape[-1]]
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    return F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=mask)[:, :, 0]


def _cudnn(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _masked(query, keys, values, mask)


def _written_out(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    keys, values = (cached[:, : mask.shape[-1]].transpose(1, 2) for cached in (keys, values))
    scores = (query[:, :, None] @ keys.transpose(2, 3)) * query.shape[-1] ** -0.5 + mask
    return (scores.float().softmax(-1).to(query.dtype) @ values)[:, :, 0]


PRODUCTS = Way("matrix products, mask over filled columns", _written_out)


def _flash_lengths(columns: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    def prepare(lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
        return starts, starts * columns, (lengths + 1).int()

    return prepare


def _flash(query: Tensor, keys: Tensor, values: Tensor, prepared: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The operator behind torch's varlen_attn: every row owns all columns, `filled` says how many are read."""
    queries, starts, filled = prepared
    rows_of_keys, rows_of_values = keys.flatten(0, 1), values.flatten(0, 1)
    return torch.ops.aten._flash_attention_forward(
        query, rows_of_keys, rows_of_values, queries, starts, 1, keys.shape[1], 0.0, False, False, seqused_k=filled
    )[0]
