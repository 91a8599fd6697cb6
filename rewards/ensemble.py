"""From the scores of several experts to one reward per sample: pure functions of arrays.

`sum` is the official combination: the weighted sum of raw scores. `gdpo` normalises every expert inside its group
first, so that an expert whose scores move little (human preference: 0.2-0.35) is not drowned by one that moves in
steps of 0.2 (the detector).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from rewards.base import ExpertScores

Mode = Literal["sum", "gdpo"]
EPS = 1e-4
"""Added to a group's standard deviation, as in the advantage of the official trainer."""


class Combined(NamedTuple):
    """rewards: (N,) float32, 0 where dropped. keep: (N,) bool, False where an expert that counts has failed."""

    rewards: np.ndarray
    keep: np.ndarray


def combine(
    scores: Mapping[str, ExpertScores],
    weights: Mapping[str, float],
    mode: Mode = "sum",
    group: Sequence[int] | np.ndarray | None = None,
) -> Combined:
    """One reward per sample.

    scores: expert -> ExpertScores of the same N samples. weights: expert -> weight; an expert whose weight is 0 or
        absent is only observed: it adds nothing and its failures drop nobody.
    group: (N,) index of the prompt each sample belongs to; groups may be ragged. Needed by "gdpo".
    An expert that is not applicable to a sample adds 0 to it. A sample that failed with an expert that counts is
    dropped, and groups are normalised without it.
    Raises ValueError on an unknown mode, a weight without scores, or a missing group.
    """
    missing = sorted(name for name, weight in weights.items() if weight and name not in scores)
    if missing:
        raise ValueError(f"weights: no scores from {', '.join(missing)}")
    if mode not in ("sum", "gdpo"):
        raise ValueError(f"mode: {mode!r} is neither 'sum' nor 'gdpo'")
    if mode == "gdpo" and group is None:
        raise ValueError("group: gdpo needs the group index of every sample")
    counting = {name: float(weights[name]) for name in scores if weights.get(name)}
    size = len(next(iter(scores.values()))) if scores else 0
    keep = np.ones(size, bool)
    for name in counting:
        keep &= np.array([status != "failed" for status in scores[name].status], bool)

    total = np.zeros(size)  # float64: equal scores stay equal whatever their order
    for name, weight in counting.items():
        counted = keep & ok_mask(scores[name])
        values = np.where(counted, scores[name].scores, 0.0).astype(np.float64)
        total += weight * (normalise_in_groups(values, np.asarray(group), counted) if mode == "gdpo" else values)
    return Combined(np.where(keep, total, 0.0).astype(np.float32), keep)


def ok_mask(scores: ExpertScores) -> np.ndarray:
    """(N,) bool: which samples have a score."""
    return np.array([status == "ok" for status in scores.status], bool)


def normalise_in_groups(values: np.ndarray, group: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(value - mean) / (std + EPS) within each group over the counted samples, unbiased std; 0 elsewhere.

    values: (N,) float. group: (N,) int. counted: (N,) bool. A group of one counted sample becomes 0.
    """
    out = np.zeros_like(values)
    for members in group_members(group, counted):
        if len(members) > 1:
            part = values[members]
            out[members] = (part - part.mean()) / (part.std(ddof=1) + EPS)
    return out


def group_members(group: np.ndarray, counted: np.ndarray) -> list[np.ndarray]:
    """Indices of the counted samples of each group, groups in rising order; groups without any are left out."""
    indices = np.flatnonzero(counted)
    order = indices[np.argsort(group[indices], kind="stable")]
    borders = np.flatnonzero(np.diff(group[order])) + 1
    return [part for part in np.split(order, borders) if len(part)]


def insight(
    scores: Mapping[str, ExpertScores],
    group: Sequence[int] | np.ndarray,
    task_types: Sequence[str],
) -> dict[str, float]:
    """What the experts said in this step, as flat metrics; a figure that has no samples is left out.

    Per expert: `<expert>/mean`, `<expert>/group_std` (mean over groups of the spread that the advantage can see),
    `<expert>/zero_spread` (share of groups in which it ranks nothing), `<expert>/scored` (number of samples),
    `<expert>/applies`, `<expert>/failed` (shares of samples), `<expert>/task/<task_type>` (mean). Per pair:
    `correlation/<a>~<b>`, Pearson over samples after taking each group's mean away, so that easy and hard prompts do
    not pass for agreement.
    """
    group, task_types = np.asarray(group), np.asarray(task_types, object)
    metrics: dict[str, float] = {}
    for name, expert in scores.items():
        ok = ok_mask(expert)
        metrics[f"{name}/applies"] = float(np.mean([status != "na" for status in expert.status]))
        metrics[f"{name}/failed"] = float(np.mean([status == "failed" for status in expert.status]))
        if not ok.any():
            continue
        metrics[f"{name}/scored"] = int(ok.sum())
        metrics[f"{name}/mean"] = float(expert.scores[ok].mean())
        spreads = [expert.scores[members].std(ddof=1) for members in group_members(group, ok) if len(members) > 1]
        if spreads:
            metrics[f"{name}/group_std"] = float(np.mean(spreads))
            metrics[f"{name}/zero_spread"] = float(np.mean(np.asarray(spreads) < 1e-6))
        for task in sorted(set(task_types[ok])):
            metrics[f"{name}/task/{task}"] = float(expert.scores[ok & (task_types == task)].mean())
    for first, second in combinations(scores, 2):
        correlation = _correlation_in_groups(scores[first], scores[second], group)
        if correlation is not None:
            metrics[f"correlation/{first}~{second}"] = correlation
    return metrics


def _correlation_in_groups(first: ExpertScores, second: ExpertScores, group: np.ndarray) -> float | None:
    both = ok_mask(first) & ok_mask(second)
    pairs = []
    for members in group_members(group, both):
        pair = np.stack([first.scores[members], second.scores[members]]).astype(np.float64)
        pairs.append(pair - pair.mean(axis=1, keepdims=True))
    if not pairs:
        return None
    a, b = np.concatenate(pairs, axis=1)
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 1e-12 else None
