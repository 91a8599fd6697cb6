"""Does an expert look at the images? Two of a group change places, and their scores must change places with them.

Scores that are tied to the prompt, to the place in the batch or to nothing do not follow. Such an expert looks healthy
in every other figure.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rewards.base import ExpertScores
from rewards.ensemble import ok_mask

LEAST = 1e-6
"""A difference of scores that is more than rounding."""


class Exchange(NamedTuple):
    """The samples with the lowest and the highest score of a group, by their places in it."""

    group: int  # number among the step's groups
    low: int
    high: int


def exchange(scores: Sequence[ExpertScores]) -> Exchange | None:
    """What to exchange: in the group whose scores differ most. None: they differ in no group, or there are none.

    scores: of one expert, group by group.
    """
    found, widest = None, LEAST
    for group, expert in enumerate(scores):
        rows = np.flatnonzero(ok_mask(expert))
        values = expert.scores[rows]
        if len(rows) and np.ptp(values) > widest:
            found, widest = Exchange(group, int(rows[values.argmin()]), int(rows[values.argmax()])), np.ptp(values)
    return found


def order(size: int, places: Exchange) -> np.ndarray:
    """(size,) row numbers of the group with the two samples exchanged."""
    rows = np.arange(size)
    rows[[places.low, places.high]] = places.high, places.low
    return rows


def follows(before: ExpertScores, after: ExpertScores, places: Exchange) -> float:
    """1: the two scores have changed places like their images; -1: they stay where they were; 0: neither.

    before, after: of the group in its own order and in that of `order`. A score that is there no more counts as 0.
    """
    low, high = places.low, places.high
    moved = float(after.scores[low]) - float(after.scores[high])
    return moved / (float(before.scores[high]) - float(before.scores[low])) if np.isfinite(moved) else 0.0
