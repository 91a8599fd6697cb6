"""Cutting samples into micro-batches by token budget.

A sample is two sequences, each a prompt and the tokens to predict after it: the plan and the image. A micro-batch may
hold both kinds, and its forward pass runs every module whatever it holds: under ZeRO-3 all ranks gather parameters
together, so they must use the same modules in the same order although they train on different samples.

The plans of a group answer one prompt, which is computed once: a row is the prompt and, after it, a branch for each
plan, which sees the prompt and itself. An image follows a plan of its own and has a row of its own; under guidance it
is two rows with the same tokens, after its prompt and after the unconditional one: its distribution is made of both.

Values of tokens have one order everywhere in the learner: the plans' tokens sample after sample, then the images'.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from t2ir1_ray.janus.policy import unconditional_ids
from t2ir1_ray.records.schema import LearnerBatch, Rollouts

MAX_PADDING = 0.05
"""Of a micro-batch's places: padding costs as much as tokens."""


@dataclass(frozen=True)
class MicroBatch:
    """R rows padded on the right to T inputs; a target's last token is no input. Places are flat: row * T + column.

    S plan tokens and J image tokens are predicted, C image tokens are inputs. All tensors int64.
    """

    text_ids: Tensor  # (R, T) text inputs, 0 where there is padding or an image token
    branches: Tensor | None  # (R, T) 1, 2, ... in the branches of a row, else 0; None: no row has more than one
    positions: Tensor | None  # (R, T) each input's distance from its sequence's first; None: its column
    code_ids: Tensor  # (C,) image inputs
    code_places: Tensor  # (C,) where they go
    semantic_ids: Tensor  # (S,) plan tokens to predict
    semantic_places: Tensor  # (S,) whose output predicts them
    image_ids: Tensor  # (J,) image tokens to predict
    image_places: Tensor  # (J,)
    unconditional_places: Tensor  # (J,) the same in the rows of guidance; (0,) without guidance
    token: Tensor  # (S + J,) number of each predicted token in the whole batch's order
    semantic_lengths: tuple[int, ...]  # of the plans whose tokens these are, S in all
    image_lengths: tuple[int, ...]  # of the images, J in all
    inputs: int  # places that are no padding

    def to(self, device: torch.device | str) -> Self:
        values = [getattr(self, f.name) for f in fields(self)]
        return type(self)(*(value.to(device) if isinstance(value, Tensor) else value for value in values))


class _Target(NamedTuple):
    ids: np.ndarray
    first: int  # number of its first token in the whole batch's order


class _Row(NamedTuple):
    image: bool
    prompts: list[np.ndarray]  # equally long: the prompt and, under guidance, the unconditional one, each a row
    targets: list[_Target]  # what may follow the prompt: one or several branches

    @property
    def length(self) -> int:
        return len(self.prompts[0]) + sum(len(target.ids) - 1 for target in self.targets)


class Sequences(NamedTuple):
    """Token ids of N samples; prompts hold at least one id, plans may be empty."""

    semantic_prompt_ids: Sequence[np.ndarray]
    semantic_ids: Sequence[np.ndarray]
    image_prompt_ids: Sequence[np.ndarray]
    image_ids: np.ndarray  # (N, I)

    @classmethod
    def of(cls, samples: Rollouts | LearnerBatch) -> Self:
        return cls(samples.semantic_prompt_ids, samples.semantic_ids, samples.image_prompt_ids, samples.image_ids)


def micro_batches(samples: Sequences, tokens_per_batch: int, pad_id: int | None = None) -> list[MicroBatch]:
    """Micro-batches of at most `tokens_per_batch` padded tokens (or of one longer sequence), longest first.

    Longest first: what does not fit into memory fails at once.
    pad_id: what fills the unconditional prompts; None: no guidance, one row per image.
    """
    semantic_prompt_ids, semantic_ids, image_prompt_ids, image_ids = samples
    firsts = np.cumsum([0, *map(len, semantic_ids)])
    plans = map(_Target, semantic_ids, firsts[:-1])
    images = map(_Target, image_ids, firsts[-1] + np.arange(len(image_ids)) * image_ids.shape[1])
    rows = _plan_rows(semantic_prompt_ids, plans, tokens_per_batch)
    if image_ids.shape[1]:
        for prompt, image in zip(image_prompt_ids, images, strict=True):
            prompts = [prompt] if pad_id is None else [prompt, unconditional_ids(prompt, pad_id)]
            rows.append(_Row(True, prompts, [image]))
    # Apart: branches need an attention mask, and without one attention is faster.
    branched, plain = ([row for row in rows if (len(row.targets) > 1) == many] for many in (True, False))
    batches = _cut(branched, tokens_per_batch) + _cut(plain, tokens_per_batch)
    return [_collate(batch) for batch in sorted(batches, key=lambda batch: -batch[0].length)]


def idle_batch() -> MicroBatch:
    """Runs every module and predicts nothing: for a rank that has less to do than the others."""
    none = torch.empty(0, dtype=torch.long)
    return MicroBatch(torch.zeros(1, 1, dtype=torch.long), None, None, *[none] * 8, (), (), inputs=0)


def in_token_order(semantic: Sequence[np.ndarray], image: np.ndarray) -> np.ndarray:
    """Values of every token, N arrays of plans' lengths and (N, I), in one array."""
    return np.concatenate([*semantic, image.ravel()])


def _plan_rows(prompts: Sequence[np.ndarray], plans: Iterable[_Target], budget: int) -> list[_Row]:
    """Plans behind the prompts that they share, as many in a row as the budget allows; empty plans are left out."""
    rows: list[_Row] = []
    latest: dict[bytes, _Row] = {}  # of each prompt
    for prompt, plan in zip(prompts, plans, strict=True):
        key = prompt.tobytes()
        if not len(plan.ids):
            continue
        if key in latest and latest[key].length + len(plan.ids) - 1 <= budget:
            latest[key].targets.append(plan)
        else:
            latest[key] = _Row(False, [prompt], [plan])
            rows.append(latest[key])
    return rows


def _cut(rows: list[_Row], budget: int) -> list[list[_Row]]:
    """Greedy by falling length: a row joins the batch before it while budget and padding allow."""
    cut: list[list[_Row]] = []
    width = used = places = 0
    for row in sorted(rows, key=lambda row: -row.length):  # stable: the same batch is always cut the same way
        copies = len(row.prompts)
        places += copies * width
        used += copies * row.length
        if cut and places <= budget and places - used <= MAX_PADDING * places:
            cut[-1].append(row)
        else:
            cut.append([row])
            width = row.length
            used = places = copies * width
    return cut


def _collate(rows: list[_Row]) -> MicroBatch:
    width = rows[0].length
    text_ids = np.zeros((sum(len(row.prompts) for row in rows), width), np.int64)
    branches, positions = np.zeros_like(text_ids), np.tile(np.arange(width), (len(text_ids), 1))
    code_ids, code_places = [], []
    ids: dict[bool, list[np.ndarray]] = {False: [], True: []}
    places: dict[bool, list[np.ndarray]] = {False: [], True: []}
    numbers: dict[bool, list[np.ndarray]] = {False: [], True: []}
    unconditional_places = []
    line = -1
    for row in rows:
        for version, prompt in enumerate(row.prompts):
            line += 1
            start = len(prompt)
            text_ids[line, :start] = prompt
            for branch, target in enumerate(row.targets, 1):
                inputs = np.arange(start, start + len(target.ids) - 1)
                if row.image:
                    code_ids.append(target.ids[:-1])
                    code_places.append(line * width + inputs)
                else:
                    text_ids[line, inputs] = target.ids[:-1]
                branches[line, inputs] = branch
                positions[line, inputs] = len(prompt) + np.arange(len(inputs))
                predicting = line * width + np.concatenate([[len(prompt) - 1], inputs])
                (unconditional_places if version else places[row.image]).append(predicting)
                start += len(inputs)
        for target in row.targets:
            ids[row.image].append(target.ids)
            numbers[row.image].append(target.first + np.arange(len(target.ids)))
    branched = len(rows[0].targets) > 1
    return MicroBatch(
        torch.from_numpy(text_ids),
        torch.from_numpy(branches) if branched else None,
        torch.from_numpy(positions) if branched else None,
        _joined(code_ids),
        _joined(code_places),
        _joined(ids[False]),
        _joined(places[False]),
        _joined(ids[True]),
        _joined(places[True]),
        _joined(unconditional_places),
        _joined(numbers[False] + numbers[True]),
        tuple(map(len, ids[False])),
        tuple(map(len, ids[True])),
        inputs=sum(len(row.prompts) * row.length for row in rows),
    )


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64))
