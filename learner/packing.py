"""Cutting samples into micro-batches by token budget.

A sample is two sequences, each a prompt and the tokens to predict after it: the plan and the image. A micro-batch may
hold both kinds, and its forward pass runs every module whatever it holds: under ZeRO-3 all ranks gather parameters
together, so they must use the same modules in the same order although they train on different samples.

Values of tokens have one order everywhere in the learner: the plans' tokens sample after sample, then the images'.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """R sequences padded on the right to T inputs; the last target is no input. Places are flat: row * T + column.

    S plan tokens and J image tokens are predicted, C image tokens are inputs. All tensors int64.
    """

    text_ids: Tensor  # (R, T) text inputs, 0 where there is padding or an image token
    code_ids: Tensor  # (C,) image inputs
    code_places: Tensor  # (C,) where they go
    semantic_ids: Tensor  # (S,) plan tokens to predict
    semantic_places: Tensor  # (S,) whose output predicts them
    image_ids: Tensor  # (J,) image tokens to predict
    image_places: Tensor  # (J,)
    token: Tensor  # (S + J,) number of each predicted token in the whole batch's order
    inputs: int  # places that are no padding

    def to(self, device: torch.device | str) -> Self:
        values = [getattr(self, f.name) for f in fields(self)]
        return type(self)(*(value.to(device) if isinstance(value, Tensor) else value for value in values))


class _Sequence(NamedTuple):
    image: bool
    prompt: np.ndarray
    target: np.ndarray
    first: int  # number of its first target in the whole batch's order

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.target) - 1


def micro_batches(
    semantic_prompt_ids: Sequence[np.ndarray],
    semantic_ids: Sequence[np.ndarray],
    image_prompt_ids: Sequence[np.ndarray],
    image_ids: np.ndarray,
    tokens_per_batch: int,
) -> list[MicroBatch]:
    """Micro-batches of at most `tokens_per_batch` padded tokens (or of one longer sequence), longest first.

    Longest first: what does not fit into memory fails at once. Prompts hold at least one id; image_ids: (N, I).
    """
    firsts = np.cumsum([0, *map(len, semantic_ids)])
    plans = zip(semantic_prompt_ids, semantic_ids, firsts[:-1], strict=True)
    images = zip(image_prompt_ids, image_ids, firsts[-1] + np.arange(len(image_ids)) * image_ids.shape[1], strict=True)
    sequences = [_Sequence(False, *plan) for plan in plans] + [_Sequence(True, *image) for image in images]
    return [_collate(rows) for rows in _cut([s for s in sequences if len(s.target)], tokens_per_batch)]


def idle_batch() -> MicroBatch:
    """Runs every module and predicts nothing: for a rank that has less to do than the others."""
    none = torch.empty(0, dtype=torch.long)
    return MicroBatch(torch.zeros(1, 1, dtype=torch.long), *[none] * 7, inputs=0)


def in_token_order(semantic: Sequence[np.ndarray], image: np.ndarray) -> np.ndarray:
    """Values of every token, N arrays of plans' lengths and (N, I), in one array."""
    return np.concatenate([*semantic, image.ravel()])


def _cut(sequences: list[_Sequence], budget: int) -> list[list[_Sequence]]:
    """Greedy by falling length. A row is padded to at most twice its length, for padding costs as much as tokens."""
    cut: list[list[_Sequence]] = []
    for sequence in sorted(sequences, key=lambda s: -s.length):  # stable: the same batch is always cut the same way
        width = cut[-1][0].length if cut else 0
        if cut and (len(cut[-1]) + 1) * width <= budget and width <= 2 * sequence.length:
            cut[-1].append(sequence)
        else:
            cut.append([sequence])
    return cut


def _collate(rows: list[_Sequence]) -> MicroBatch:
    width = rows[0].length
    text_ids = np.zeros((len(rows), width), np.int64)
    code_ids, code_places = [], []
    ids: dict[bool, list[np.ndarray]] = {False: [], True: []}
    places: dict[bool, list[np.ndarray]] = {False: [], True: []}
    numbers: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for row, (image, prompt, target, first) in enumerate(rows):
        text_ids[row, : len(prompt)] = prompt
        start = row * width + len(prompt)
        if image:
            code_ids.append(target[:-1])
            code_places.append(start + np.arange(len(target) - 1))
        else:
            text_ids[row, len(prompt) : len(prompt) + len(target) - 1] = target[:-1]
        ids[image].append(target)
        places[image].append(start - 1 + np.arange(len(target)))
        numbers[image].append(first + np.arange(len(target)))
    return MicroBatch(
        torch.from_numpy(text_ids),
        _joined(code_ids),
        _joined(code_places),
        _joined(ids[False]),
        _joined(places[False]),
        _joined(ids[True]),
        _joined(places[True]),
        _joined(numbers[False] + numbers[True]),
        inputs=sum(row.length for row in rows),
    )


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64))
