"""The way of a policy version from the learner to the rollout actors through Ray's object store.

A version is one object: written once by learner rank 0, mapped read-only by every rollout actor of a node.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Policy version `version`: the trained parameters (transformers' names) as byte arrays that Ray does not copy."""

    version: int
    buffers: dict[str, np.ndarray]  # uint8, row-major
    layout: dict[str, tuple[str, tuple[int, ...]]]  # name -> (torch dtype name, shape)

    @classmethod
    def pack(cls, version: int, state: Mapping[str, Tensor]) -> "Weights":
        """state: contiguous CPU tensors."""
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


def checksum(state: Mapping[str, Tensor]) -> str:
    """64-bit digest of names, shapes, dtypes and contents: equal states give equal digests, on any device.

    Contents enter as sums of the raw words, plain and weighted by position: as fast as memory, unlike a cryptographic
    hash, and enough to notice a stale, partial or permuted transfer.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        words = tensor.view(-1).view(torch.int16 if tensor.element_size() == 2 else torch.int32).long()
        ramp = torch.arange(words.numel(), device=words.device) % 65521 + 1
        sums = int(words.sum()), int((words * ramp).sum())
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {sums}".encode())
    return digest.hexdigest()
