"""What the object-detector experts share: they find boxes for a prompt's nouns, and `rewards.detection` scores them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.base import Row
from rewards.batched import BatchedExpert
from rewards.detection import Compat, Detection, Directions, detection_score
from t2ir1_ray.errors import UserError


class DetectorExpert(BatchedExpert):
    """Objects, counts and positions of a prompt, in 0..1. Applies to every prompt; no nouns scores 1."""

    name: str
    value_range = (0.0, 1.0)

    def __init__(self, compat: Compat, directions: Directions, box_threshold: float, batch_size: int) -> None:
        """compat, directions: see `rewards.detection.detection_score`. box_threshold: what a box must score."""
        super().__init__(batch_size)
        for field, value, allowed in (
            ("compat", compat, ("fixed", "official")),
            ("directions", directions, ("dominant", "own")),
        ):
            if value not in allowed:
                raise UserError(f"expert {field}: {value!r} is unknown: choose {' or '.join(allowed)}")
        self.compat, self.directions, self.box_threshold = compat, directions, box_threshold

    @abstractmethod
    def find(self, prepared: Sequence[Any], nouns: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Boxes above the threshold for the nouns of each prepared image (at least one each), noun by noun."""

    def detect(self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """`find` in images of (H, W, 3) uint8."""
        return self.find([self.prepare(image) for image in images], nouns)

    def score_batch(self, prepared: list[Any], rows: list[Row]) -> np.ndarray:
        nouns = [list(row.get("nouns") or []) for row in rows]
        searched = [index for index, names in enumerate(nouns) if names]
        found: dict[int, list[Detection]] = {}
        if searched:
            found = dict(
                zip(searched, self.find([prepared[i] for i in searched], [nouns[i] for i in searched]), strict=True)
            )
        return np.array(
            [
                detection_score(row, found.get(index, []), self.compat, self.directions)
                for index, row in enumerate(rows)
            ],
            np.float32,
        )


def official_phrase(noun: str) -> str:
    """The label that the official code gives to a noun: its first and its last word."""
    words = noun.split()
    return noun if len(words) < 3 else f"{words[0]} {words[-1]}"
