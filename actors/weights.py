"""The way of a policy version from the learner to the rollout actors through Ray's object store, and its digest.

A version is one object: written once by learner rank 0, mapped read-only by every rollout actor of a node.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 15
"""Words of 32 bits in one sum of a digest."""
BLOCKS_AT_ONCE = 128
"""16 MiB of a tensor; their products, on a GPU, take 32 MiB."""


@dataclass(frozen=True)
class Weights:
    """Policy version `version`: the trained parameters (transformers' names) as byte arrays that Ray does not copy."""

    version: int
    buffers: dict[str, np.ndarray]  # uint8, row-major
    layout: dict[str, tuple[str, tuple[int, ...]]]  # name -> (torch dtype name, shape)

    @classmethod
    def pack(cls, version: int, state: Mapping[str, Tensor]) -> "Weights":
        """state: CPU tensors; what is contiguous is not copied."""
        return cls(
            version,
            {name: tensor.contiguous().view(-1).view(torch.uint8).numpy() for name, tensor in state.items()},
            {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in state.items()},
        )

    def unpack(self) -> dict[str, Tensor]:
        """Tensors over Ray's read-only memory: read them, never write."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return {
                name: torch.from_numpy(self.buffers[name]).view(getattr(torch, dtype)).view(shape)
                for name, (dtype, shape) in self.layout.items()
            }


class Digest:
    """64 bits of a state's names, shapes, dtypes and contents, the same on every device and in every order of tensors.

    Each tensor is read where it lies: on a GPU at once, on a CPU by threads while the caller goes on, so that it must
    not change before `hexdigest`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Future[Tensor]] = {}
        self._kinds: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        self._kinds[name] = f"{name} {tuple(tensor.shape)} {tensor.dtype}"
        if tensor.device.type == "cpu":
            self._sums[name] = _threads().submit(block_sums, tensor)
        else:
            self._sums[name] = Future()
            # `cpu` waits for the device: buffers that several streams share are not taken away before they are read.
            self._sums[name].set_result(block_sums(tensor).cpu())

    def hexdigest(self) -> str:
        found = hashlib.blake2b(digest_size=8)
        for name in sorted(self._sums):
            found.update(f"{self._kinds[name]}\n".encode())
            found.update(self._sums[name].result().numpy().tobytes())
        return found.hexdigest()


def checksum(state: Mapping[str, Tensor]) -> str:
    """The `Digest` of a whole state."""
    digest = Digest()
    for name, tensor in state.items():
        digest.add(name, tensor)
    return digest.hexdigest()


def block_sums(tensor: Tensor) -> Tensor:
    """A sum for every `BLOCK` words of the tensor's raw bytes: (blocks,) int64 on its device.

    Multilinear hashing (Lemire and Kaser, arXiv 1202.4961): words of 32 bits times fixed odd numbers of 64 bits, one
    per place, summed modulo 2^64. A change of one word always shows; one of several (a swap, flips that cancel in a
    plain sum) but for a chance of about 2^-32; blocks are told apart by their order. Integers, so that every device and
    every number of threads finds the same.
    """
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return torch.cat([_sums(_words(part)) for part in raw.split(4 * BLOCK * BLOCKS_AT_ONCE)])


def _sums(words: Tensor) -> Tensor:
    """Of whole blocks and a rest."""
    factors = _factors(words.device)
    whole = len(words) // BLOCK
    blocks, rest = words[: whole * BLOCK].view(whole, BLOCK), words[whole * BLOCK :]
    sums = _dots(blocks, factors) if words.device.type == "cpu" else _products(blocks, factors)
    return torch.cat([sums, (rest * factors[: len(rest)]).sum()[None]]) if len(rest) else sums


def _dots(blocks: Tensor, factors: Tensor) -> Tensor:
    """`blocks` @ `factors` on a CPU, one block at a time: it stays in the cache."""
    wide = torch.empty_like(factors)
    sums = [torch.dot(wide.copy_(block), factors) for block in blocks]
    return torch.stack(sums) if sums else wide[:0]


def _products(blocks: Tensor, factors: Tensor) -> Tensor:
    """`blocks` @ `factors` on a GPU, which has no such product of integers."""
    return (blocks * factors).sum(1)


def _words(raw: Tensor) -> Tensor:
    """Bytes as int32; zeros behind them, in a copy, where they are no multiple of four."""
    if len(raw) % 4 or raw.storage_offset() % 4:
        padded = raw.new_zeros(-(-len(raw) // 4) * 4)
        padded[: len(raw)] = raw
        raw = padded
    return raw.view(torch.int32)


@cache
def _factors(device: torch.device) -> Tensor:
    """(BLOCK,) int64, odd, the same in every process."""
    stream = hashlib.shake_256(b"digest of a policy version").digest(8 * BLOCK)
    return torch.from_numpy(np.frombuffer(stream, "<i8") | 1).to(device)


@cache
def _threads() -> ThreadPoolExecutor:
    """Ray leaves an actor one OpenMP thread; these read memory for a moment and sleep."""
    return ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0))), "digest")
