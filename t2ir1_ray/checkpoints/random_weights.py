"""Checkpoint folders whose weights are drawn instead of read: a few small files in place of gigabytes.

Such a folder has configuration and tokenizer of a model and, in place of weights, the file `MARK`. Only
`t2ir1_ray.rehearsal` writes one; whoever loads it looks for the file by `has_random_weights`.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from t2ir1_ray.storage import write_whole

MARK = "random_weights.json"
PLACES = 1 << 16
"""Where a tensor may begin in the row of numbers that all are made of."""
STRIDE = 3
"""Between the beginnings of two rows of a weight."""


def mark_random(folder: Path, build: Callable[[], nn.Module]) -> None:
    """Say that the folder's weights are drawn. build: makes the model, here without memory, to count its parameters."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build().parameters())
    write_whole(folder / MARK, json.dumps({"parameters": count}))


def has_random_weights(folder: Path) -> bool:
    return (folder / MARK).is_file()


def random_parameters(folder: Path) -> int:
    """How many numbers such a folder's model has."""
    return int(json.loads((folder / MARK).read_text())["parameters"])


@contextmanager
def drawn(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside lie on the device in this dtype, with the weights that they begin with: always the same."""
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(default)


def random_tensors(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A state dict in float64, the same in every process and on every device: norms are 1, biases 0, the rest normal
    with a variance of 1 / inputs.

    Hardly anything is allocated: rows of weights are overlapping pieces of one row of numbers, from a place that the
    tensor's name gives. A model is of another dtype, and so has a copy.
    """
    inputs = {name: math.prod(shape[1:]) for name, shape in shapes.items() if len(shape) > 1}
    length = PLACES + max((STRIDE * shapes[name][0] + count for name, count in inputs.items()), default=0)
    numbers = torch.randn(length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = {count: numbers / math.sqrt(count) for count in set(inputs.values())}
    return {
        name: _piece(name, shape, scaled[inputs[name]]) if name in inputs else _flat(name, shape)
        for name, shape in shapes.items()
    }


def _piece(name: str, shape: torch.Size, numbers: Tensor) -> Tensor:
    strides = [math.prod(shape[axis + 1 :]) for axis in range(1, len(shape))]
    return numbers.as_strided(shape, (STRIDE, *strides), zlib.crc32(name.encode()) % PLACES)


def _flat(name: str, shape: torch.Size) -> Tensor:
    return torch.full(shape, float(name.endswith("weight")), dtype=torch.float64)
