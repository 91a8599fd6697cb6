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


def fingerprint(tensor: Tensor) -> str:
    """Shape, dtype and two sums of the raw words, plain and weighted by position, on the tensor's own device.

    As fast as memory, unlike a cryptographic hash, and enough to notice a stale, partial or permuted transfer.
    """
    flat = tensor.detach().contiguous().view(-1)
    words = flat.view(torch.int16 if flat.element_size() == 2 else torch.int32).long()
    ramp = torch.arange(words.numel(), device=words.device) % 65521 + 1
    return f"{tuple(tensor.shape)} {tensor.dtype} {int(words.sum())} {int((words * ramp).sum())}"


def digest(fingerprints: Mapping[str, str]) -> str:
    """64-bit digest of a state, from the fingerprints of its tensors by name."""
    text = "\n".join(f"{name} {fingerprints[name]}" for name in sorted(fingerprints))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def checksum(state: Mapping[str, Tensor]) -> str:
    """Digest of names, shapes, dtypes and contents: equal states give equal digests, on any device."""
    return digest({name: fingerprint(tensor) for name, tensor in state.items()})
