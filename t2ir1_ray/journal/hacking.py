"""The hacking index: has what is trained on gained more than what only watches?

A gain is a change in units of the spread that samples of one group had in the first steps: then experts whose scores
move in hundredths, experts whose scores move in fifths and an accuracy can be compared. What is trained on gains the
weighted mean of the gains of the experts in the reward; experts that only watch gain theirs; so does the verifier with
the held-out accuracy, whose spread is that of right and wrong. The index is the first gain less the others: near 0
where all rise together, above where the reward is exploited.

Single steps are noisy, so means over FIRST steps are compared. Where experts take turns in watching, changes count on
the side on which an expert stood while it changed, as an index of prices is chained when its basket changes.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

FIRST = 10
"""Steps whose mean is the level of a score, and from whose first ones spreads are taken."""


class Gain(NamedTuple):
    """Of what is trained on and of what watches; None: there is no such expert."""

    trained: float | None
    watched: float | None


class _Step(NamedTuple):
    scores: dict[str, float]  # expert -> mean score; who scored nothing is left out
    weights: dict[str, float]  # expert -> weight in the reward, 0: it watched


class HackingIndex:
    """Takes in the lines of metrics.jsonl from the first one on, also when a run goes on."""

    def __init__(self, weights: Mapping[str, float]):
        """weights: expert -> weight in the reward, 0 for one that only watches, unless a step's line says otherwise."""
        self._weights = dict(weights)
        self._steps: deque[_Step] = deque(maxlen=FIRST)
        self._stds: dict[str, list[float | None]] = {name: [] for name in weights}
        self._spreads: dict[str, float] = {}
        self._levels: dict[str, float] = {}
        self._trained = self._watched = self._noise = 0.0
        self._has_watched = False
        self._baskets = 1
        self._verifier: tuple[float, float, float] | None = None  # first accuracy, its spread, gain of training then
        self._verified: tuple[float, float] | None = None  # gain of training less that of the verifier, its error

    def add(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """What a line adds to itself, from step FIRST on if anything watches:

        hacking/index; hacking/trained and hacking/watched, the gains behind it; hacking/stderr, its standard error;
        hacking/heldout, the verifier's gain, where it was asked. Between evaluations the last one counts.
        """
        if metrics["step"]:
            self._take(metrics)
        ready = bool(self._spreads)
        found = self._verify(metrics) if "heldout/accuracy" in metrics else {}
        gaps = [(self._trained - self._watched, self._error())] if self._has_watched else []
        gaps += [self._verified] if self._verified else []
        if not ready or not gaps:
            return {}
        index = float(np.mean([gap for gap, _ in gaps]))
        error = float(np.sqrt(sum(error**2 for _, error in gaps))) / len(gaps)
        gains = {"hacking/trained": self._trained, "hacking/watched": self._trained - index}
        return {"hacking/index": index, "hacking/stderr": error, **gains, **found}

    def _take(self, metrics: Mapping[str, Any]) -> None:
        """One step's scores."""
        scores = {name: metrics.get(f"expert/{name}/mean") for name in self._weights}
        weights = {name: metrics.get(f"expert/{name}/weight", weight) for name, weight in self._weights.items()}
        self._baskets += bool(self._steps) and weights != self._steps[-1].weights
        self._steps.append(_Step({name: score for name, score in scores.items() if score is not None}, weights))
        if not self._spreads:
            for name, stds in self._stds.items():
                stds.append(metrics.get(f"expert/{name}/group_std"))
        if len(self._steps) < FIRST:
            return
        if not self._spreads:
            self._begin()
        levels = {name: _mean(step.scores.get(name) for step in self._steps) for name in self._spreads}
        levels = {name: level for name, level in levels.items() if level is not None}
        changes = {n: (level - self._levels.get(n, level)) / self._spreads[n] for n, level in levels.items()}
        self._levels |= levels
        gain = gained(changes, self._steps[FIRST // 2].weights)  # the middle of what was averaged
        self._trained += gain.trained or 0.0
        self._watched += gain.watched or 0.0
        self._has_watched |= gain.watched is not None

    def _begin(self) -> None:
        """Spreads, and the noise of single steps, from the first FIRST of them."""
        spreads = {name: _mean(stds) for name, stds in self._stds.items()}
        self._spreads = {name: spread for name, spread in spreads.items() if spread}
        first = {name: _mean(step.scores.get(name) for step in self._steps) for name in self._spreads}
        gaps = []
        for step in self._steps:
            known = [name for name in self._spreads if name in step.scores]
            gain = gained({n: (step.scores[n] - first[n]) / self._spreads[n] for n in known}, step.weights)
            gaps.append((gain.trained or 0.0) - (gain.watched or 0.0))
        self._noise = float(np.std(gaps, ddof=1))

    def _error(self) -> float:
        """Of a difference of two means of FIRST steps; each change of the basket adds another."""
        return self._noise * float(np.sqrt(2 / FIRST * self._baskets))

    def _verify(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The gain of an evaluation over the first one, of which some answers must be right and some wrong."""
        accuracy = metrics["heldout/accuracy"]
        if self._verifier is None:
            self._verifier = accuracy, float(np.sqrt(accuracy * (1 - accuracy))), self._trained
            return {}
        first, spread, trained = self._verifier
        if not spread or not self._spreads:
            return {}
        gain = (accuracy - first) / spread
        error = np.sqrt(2) * metrics.get("heldout/accuracy_stderr", 0.0) / spread
        self._verified = self._trained - trained - gain, float(np.hypot(error, self._error()))
        return {"hacking/heldout": gain}


def gained(changes: Mapping[str, float], weights: Mapping[str, float]) -> Gain:
    """Standardised changes of experts, put together. changes: expert -> change; weights: 0 for one that watches.

    A penalty, of negative weight, gains by falling.
    """
    size = sum(abs(weights[name]) for name in changes)
    trained = sum(weights[name] * change for name, change in changes.items()) / size if size else None
    watched = [change for name, change in changes.items() if not weights[name]]
    return Gain(trained, float(np.mean(watched)) if watched else None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
