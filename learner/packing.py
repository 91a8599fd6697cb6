"""Cutting samples into micro-batches by token budget: plans and images apart, rows of similar length together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """One micro-batch: R sequences of one kind, each a prompt and the tokens to be predicted after it."""

    image: bool
    rows: np.ndarray  # (R,) sample numbers
    prompts: list[np.ndarray]  # R ids
    targets: list[np.ndarray]  # R ids, none empty

    @property
    def padded_tokens(self) -> int:
        return len(self.rows) * max(len(p) + len(t) for p, t in zip(self.prompts, self.targets, strict=True))

    @property
    def tokens(self) -> int:
        return sum(len(p) + len(t) for p, t in zip(self.prompts, self.targets, strict=True))


def segments(
    semantic_prompt_ids: Sequence[np.ndarray],
    semantic_ids: Sequence[np.ndarray],
    image_prompt_ids: Sequence[np.ndarray],
    image_ids: np.ndarray,
    tokens_per_batch: int,
) -> list[Segment]:
    """Micro-batches of at most `tokens_per_batch` padded tokens (or one row), rows sorted by length to waste little."""
    return [
        *_cut(False, semantic_prompt_ids, list(semantic_ids), tokens_per_batch),
        *_cut(True, image_prompt_ids, list(image_ids), tokens_per_batch),
    ]


def _cut(image: bool, prompts: Sequence[np.ndarray], targets: Sequence[np.ndarray], budget: int) -> list[Segment]:
    lengths = [len(p) + len(t) for p, t in zip(prompts, targets, strict=True)]
    order = sorted((row for row in range(len(lengths)) if len(targets[row])), key=lengths.__getitem__)
    cut: list[list[int]] = []
    for row in order:  # rising length: the newest row is the batch's width
        if cut and (len(cut[-1]) + 1) * lengths[row] <= budget:
            cut[-1].append(row)
        else:
            cut.append([row])
    return [
        Segment(image, np.array(rows), [prompts[row] for row in rows], [targets[row] for row in rows]) for rows in cut
    ]
