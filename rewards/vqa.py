"""The yes/no questions that T2I-R1 puts to a visual question answering model: one for each object of the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rewards.base import Row
from t2ir1_ray.errors import UserError

NOT_ASKED = frozenset({"spatial", "numeracy"})
"""Task types left to the detector: officially the VQA reward is 0 for them, which cancels in the advantage."""


def applies_to(row: Row) -> bool:
    """Whether a VQA expert has an opinion on this prompt."""
    return row.get("task_type") not in NOT_ASKED


def objects_of(row: Row) -> list[str]:
    """The phrases to ask about: `attr_nouns` ("red cup") unless null, else `nouns` ("cup")."""
    attributed = row.get("attr_nouns")
    return list((row.get("nouns") or []) if attributed is None else attributed)


def yes_no_ids(tokenizer: Any) -> tuple[int, int]:
    """Token ids of "yes" and "no". Raises UserError if the tokenizer does not know them as single tokens."""
    ids = tuple(tokenizer.convert_tokens_to_ids([word])[0] for word in ("yes", "no"))
    if None in ids or tokenizer.unk_token_id in ids:
        raise UserError("expert tokenizer: 'yes' or 'no' is no token of it: give a checkpoint that answers questions")
    return ids


def yes_probability(logits: Tensor, yes_no: tuple[int, int], temperature: float = 1.0) -> Tensor:
    """p(yes) / (p(yes) + p(no)) in float32; logits: (..., V) -> (...). A temperature below 1 sharpens it."""
    yes, no = yes_no
    return torch.sigmoid((logits[..., yes].float() - logits[..., no].float()) / temperature)
