"""Figures that are one sum divided by another, such as accuracy, precision and F1: errors, and a paired test.

What is counted belongs to units, which are independent of each other (images): only what holds for whole units tells
how far a figure may be off. A mean is the special case in which every unit counts one.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from t2ir1_ray.benchmarks.base import SIGNS

BLOCK = 250
"""Exchanges that are looked at together."""


@dataclass(frozen=True)
class Ratio:
    """sum(counted) / sum(possible), both (U,) float64, by unit."""

    counted: np.ndarray
    possible: np.ndarray

    @classmethod
    def over(cls, units: np.ndarray, counted: np.ndarray, possible: np.ndarray) -> Ratio:
        """units: (N,) int, the unit that each of N counts belongs to, from 0."""
        return cls(np.bincount(units, counted), np.bincount(units, possible))

    @property
    def value(self) -> float | None:
        """None if nothing was possible, as the precision of who never says yes."""
        possible = self.possible.sum()
        return float(self.counted.sum() / possible) if possible else None

    def influence(self) -> np.ndarray:
        """(U,) by how much each unit moves the ratio, to first order (the delta method); they add up to 0."""
        return (self.counted - self.value * self.possible) / self.possible.sum()


def ratio(one: Ratio) -> tuple[float, float] | None:
    """(value, standard error over units); the error is NaN for a single unit. Of a mean it is s / sqrt(U)."""
    return None if one.value is None else (one.value, _error(one.influence()))


def difference(first: Ratio, second: Ratio) -> tuple[float, float] | None:
    """(first - second, its standard error), paired by unit."""
    if first.value is None or second.value is None:
        return None
    return first.value - second.value, _error(first.influence() - second.influence())


def swap_p(first: Ratio, second: Ratio) -> float:
    """p of the paired two-sided test that two things to compare, both of which have a value, are the same.

    If they are, each unit's counts may as well be the other's: p is the share of all exchanges, or of 10,000 drawn
    ones, whose difference is as far from 0 as the one that was found. Of accuracies of one question per unit, this is
    McNemar's exact test.
    """
    ends = np.array([[one.counted.sum(), one.possible.sum()] for one in (first, second)])
    moves = np.stack([second.counted - first.counted, second.possible - first.possible], 1)
    moves = moves[moves.any(1)]  # the others change nothing
    if 2 ** len(moves) <= SIGNS:
        blocks = [np.array(list(itertools.product((0.0, 1.0), repeat=len(moves))))]
    else:
        rng = np.random.default_rng(0)
        blocks = [rng.integers(0, 2, (BLOCK, len(moves))) for _ in range(SIGNS // BLOCK)]
        blocks[0][0] = 0  # what was found is one of them
    found = []
    for swapped in blocks:
        shift = swapped @ moves
        with np.errstate(divide="ignore", invalid="ignore"):
            one, other = ((sums[:, 0] / sums[:, 1]) for sums in (ends[0] + shift, ends[1] - shift))
        found.append(np.abs(one - other))
    distances = np.concatenate(found)
    distances[np.isnan(distances)] = math.inf  # an exchange under which one has no value counts against a difference
    return float(np.mean(distances >= distances[0] - 1e-12))


def _error(influence: np.ndarray) -> float:
    units = len(influence)
    return math.sqrt(units / (units - 1) * float(np.sum(influence**2))) if units > 1 else math.nan
