"""Cutting samples into micro-batches by token budget.

A sample is two sequences, each a prompt and the tokens to predict after it: the plan and the image. A micro-batch may
hold both kinds, and its forward pass runs every module whatever it holds: under ZeRO-3 all ranks gather parameters
together, so they must use the same modules in the same order although they train on different samples.

An image under guidance is two rows with the same tokens, after its prompt and after the unconditional one: its
distribution is made of both.

Values of tokens have one order everywhere in the learner: the plans' tokens sample after sample, then the images'.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from t2ir1_ray.policy import unconditional_ids

MAX_PADDING = 0.05
"""Of a micro-batch's places: padding costs as much as tokens."""


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
    unconditional_places: Tensor  # (J,) the same in the rows of guidance; (0,) without guidance
    token: Tensor  # (S + J,) number of each predicted token in the whole batch's order
    inputs: int  # places that are no padding

    def to(self, device: torch.device | str) -> Self:
        values = [getattr(self, f.name) for f in fields(self)]
        return type(self)(*(value.to(device) if isinstance(value, Tensor) else value for value in values))


class _Sequence(NamedTuple):
    image: bool
    prompts: list[np.ndarray]  # one row each, equally long: the prompt and, under guidance, the unconditional one
    target: np.ndarray
    first: int  # number of its first target in the whole batch's order

    @property
    def length(self) -> int:
        return len(self.prompts[0]) + len(self.target) - 1


def micro_batches(
    semantic_prompt_ids: Sequence[np.ndarray],
    semantic_ids: Sequence[np.ndarray],
    image_prompt_ids: Sequence[np.ndarray],
    image_ids: np.ndarray,
    tokens_per_batch: int,
    pad_id: int | None = None,
) -> list[MicroBatch]:
    """Micro-batches of at most `tokens_per_batch` padded tokens (or of one longer sequence), longest first.

    Longest first: what does not fit into memory fails at once. Prompts hold at least one id; image_ids: (N, I).
    pad_id: what fills the unconditional prompts; None: no guidance, one row per image.
    """
    firsts = np.cumsum([0, *map(len, semantic_ids)])
    plans = zip([[prompt] for prompt in semantic_prompt_ids], semantic_ids, firsts[:-1], strict=True)
    rows = [[prompt] if pad_id is None else [prompt, unconditional_ids(prompt, pad_id)] for prompt in image_prompt_ids]
    images = zip(rows, image_ids, firsts[-1] + np.arange(len(image_ids)) * image_ids.shape[1], strict=True)
    sequences = [_Sequence(False, *plan) for plan in plans] + [_Sequence(True, *image) for image in images]
    return [_collate(rows) for rows in _cut([s for s in sequences if len(s.target)], tokens_per_batch)]


def idle_batch() -> MicroBatch:
    """Runs every module and predicts nothing: for a rank that has less to do than the others."""
    none = torch.empty(0, dtype=torch.long)
    return MicroBatch(torch.zeros(1, 1, dtype=torch.long), *[none] * 8, inputs=0)


def in_token_order(semantic: Sequence[np.ndarray], image: np.ndarray) -> np.ndarray:
    """Values of every token, N arrays of plans' lengths and (N, I), in one array."""
    return np.concatenate([*semantic, image.ravel()])


def _cut(sequences: list[_Sequence], budget: int) -> list[list[_Sequence]]:
    """Greedy by falling length: a sequence joins the batch before it while budget and padding allow."""
    cut: list[list[_Sequence]] = []
    width = used = places = 0
    for sequence in sorted(sequences, key=lambda s: -s.length):  # stable: the same batch is always cut the same way
        rows = len(sequence.prompts)
        places += rows * width
        used += rows * sequence.length
        if cut and places <= budget and places - used <= MAX_PADDING * places:
            cut[-1].append(sequence)
        else:
            cut.append([sequence])
            width = sequence.length
            used = places = rows * width
    return cut


def _collate(sequences: list[_Sequence]) -> MicroBatch:
    width = sequences[0].length
    text_ids = np.zeros((sum(len(sequence.prompts) for sequence in sequences), width), np.int64)
    code_ids, code_places = [], []
    ids: dict[bool, list[np.ndarray]] = {False: [], True: []}
    places: dict[bool, list[np.ndarray]] = {False: [], True: []}
    numbers: dict[bool, list[np.ndarray]] = {False: [], True: []}
    unconditional_places = []
    row = inputs = 0
    for image, prompts, target, first in sequences:
        for version, prompt in enumerate(prompts):
            text_ids[row, : len(prompt)] = prompt
            start = row * width + len(prompt)
            if image:
                code_ids.append(target[:-1])
                code_places.append(start + np.arange(len(target) - 1))
            else:
                text_ids[row, len(prompt) : len(prompt) + len(target) - 1] = target[:-1]
            (unconditional_places if version else places[image]).append(start - 1 + np.arange(len(target)))
            row += 1
            inputs += len(prompt) + len(target) - 1
        ids[image].append(target)
        numbers[image].append(first + np.arange(len(target)))
    return MicroBatch(
        torch.from_numpy(text_ids),
        _joined(code_ids),
        _joined(code_places),
        _joined(ids[False]),
        _joined(places[False]),
        _joined(ids[True]),
        _joined(places[True]),
        _joined(unconditional_places),
        _joined(numbers[False] + numbers[True]),
        inputs=inputs,
    )


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64))
