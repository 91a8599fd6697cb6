"""What every expert shares: the protocol and the record of scores.

A sample ends in one of three states. `ok`: it has a finite score. `na`: the expert does not apply to this prompt, which
holds for the whole group and therefore cancels in the advantage. `failed`: this one image could not be read, so the
sample is dropped from its group. Anything else that goes wrong (a score that is not finite, a device error) is raised:
a broken reward must stop the step rather than train on noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from rewards.images import decode_image
from t2ir1_ray.errors import RunError

Row = Mapping[str, Any]
"""One prompt with the T2I-R1 fields: prompt, task_type, nouns, attr_nouns, spatial_info, numeracy_info."""

Status = Literal["ok", "na", "failed"]

Images = np.ndarray | Sequence[Any]
"""(N, H, W, 3) uint8, or one item per sample: an (H, W, 3) uint8 array of any size, or the bytes of an image file."""


class NonFiniteScore(RunError):
    """An expert produced NaN or infinity. The message names the expert and the sample."""


@dataclass(frozen=True, slots=True)
class ExpertScores:
    """Scores of one expert for N samples.

    scores: (N,) float32, NaN unless the status is "ok".
    status: N times "ok", "na" or "failed".
    errors: N times None, or for a failed sample one line saying why.
    """

    scores: np.ndarray
    status: list[str]
    errors: list[str | None]

    def __len__(self) -> int:
        return len(self.status)


class Expert(Protocol):
    """A frozen reward model. `score` is deterministic, and a sample's score does not depend on its batch mates."""

    name: str
    value_range: tuple[float, float]

    def applies_to(self, row: Row) -> bool:
        """Whether the expert has an opinion on this prompt."""
        ...

    def score(self, images: Images, rows: Sequence[Row]) -> ExpertScores:
        """Score image i against prompt row i."""
        ...


def read_image(item: Any) -> np.ndarray:
    """One image as (H, W, 3) uint8. Raises ValueError with one line if it cannot be read."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return decode_image(item)
    if not isinstance(item, np.ndarray):
        raise ValueError(f"expected a uint8 array or the bytes of an image file, got {type(item).__name__}")
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[-1] != 3 or 0 in item.shape:
        raise ValueError(f"expected an image of shape (H, W, 3) uint8, got {item.shape} {item.dtype}")
    return item


def check_finite(name: str, scores: ExpertScores, rows: Sequence[Row]) -> None:
    """Raise NonFiniteScore if a sample has the status "ok" without a finite score."""
    for index, (score, status) in enumerate(zip(scores.scores, scores.status, strict=True)):
        if status == "ok" and not np.isfinite(score):
            raise not_finite(name, index, rows)


def not_finite(name: str, index: int, rows: Sequence[Row]) -> NonFiniteScore:
    """The error that names the sample."""
    row = rows[index]
    prompt = f"{row['prompt_id']}, {row['prompt']!r}" if "prompt_id" in row else repr(row.get("prompt"))
    return NonFiniteScore(f"{name}: score of sample {index} is not finite (prompt {prompt})")


def index_of_each(values: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The distinct values in order of first appearance, and for every value its position among them."""
    position = {value: index for index, value in enumerate(dict.fromkeys(values))}
    return list(position), [position[value] for value in values]
