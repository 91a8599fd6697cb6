"""What the object-detector experts share: they find boxes for a prompt's nouns, and `rewards.detection` scores them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from rewards.base import ExpertScores, Images, Row, score_in_batches
from rewards.detection import Compat, Detection, Directions, detection_score
from t2ir1_ray.errors import UserError


class DetectorExpert(ABC):
    """Objects, counts and positions of a prompt, in 0..1. Applies to every prompt; no nouns scores 1."""

    name: str
    value_range = (0.0, 1.0)

    def __init__(self, compat: Compat, directions: Directions, box_threshold: float, batch_size: int) -> None:
        """compat, directions: see `rewards.detection.detection_score`. box_threshold: what a box must score."""
        for field, value, allowed in (
            ("compat", compat, ("fixed", "official")),
            ("directions", directions, ("dominant", "own")),
        ):
            if value not in allowed:
                raise UserError(f"expert {field}: {value!r} is unknown: choose {' or '.join(allowed)}")
        self.compat, self.directions = compat, directions
        self.box_threshold, self.batch_size = box_threshold, batch_size

    @abstractmethod
    def detect(self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Boxes above the threshold for the nouns of each image (at least one each), noun by noun."""

    def applies_to(self, row: Row) -> bool:
        return True

    def score(self, images: Images, rows: Sequence[Row]) -> ExpertScores:
        return score_in_batches(self.name, images, rows, self.applies_to, self._score_batch, self.batch_size)

    def _score_batch(self, images: list[np.ndarray], rows: list[Row]) -> np.ndarray:
        nouns = [list(row.get("nouns") or []) for row in rows]
        searched = [index for index, names in enumerate(nouns) if names]
        found: dict[int, list[Detection]] = {}
        if searched:
            found = dict(
                zip(searched, self.detect([images[i] for i in searched], [nouns[i] for i in searched]), strict=True)
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
