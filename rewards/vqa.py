"""The yes/no questions that T2I-R1 puts to a visual question answering model: one for each object of the prompt."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rewards.base import Row
from rewards.batched import BatchedExpert
from rewards.checkpoint import checkpoint_path, load_pretrained, load_tokenizer
from rewards.image_processor import load_image_processor
from t2ir1_ray.errors import UserError

NOT_ASKED = frozenset({"spatial", "numeracy"})
"""Task types left to the detector: officially the VQA reward is 0 for them, which cancels in the advantage."""


class VqaExpert(BatchedExpert):
    """The mean of p(yes) over the prompt's objects, in 0..1; 1 where there is nothing to ask.

    Does not apply to spatial and numeracy prompts.
    """

    name: ClassVar[str]
    model_class: ClassVar[Any]  # of transformers
    image_processor_class: ClassVar[Any]  # of transformers, PIL backend
    value_range = (0.0, 1.0)

    def __init__(self, path: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 16) -> None:
        super().__init__(batch_size)
        path = checkpoint_path(path)
        self.model = load_pretrained(self.model_class, path, device, dtype)
        self.tokenizer = load_tokenizer(path)
        side = self.model.config.vision_config.image_size
        self.image_processor = load_image_processor(self.image_processor_class, path, side)
        self.yes_no = yes_no_ids(self.tokenizer)
        self.device, self.dtype = device, getattr(torch, dtype)

    def applies_to(self, row: Row) -> bool:
        return row.get("task_type") not in NOT_ASKED

    def prepare(self, image: np.ndarray) -> Tensor:
        """(3, H, W) float32, as the checkpoint's processor says."""
        return self.image_processor(images=image, return_tensors="pt").pixel_values[0]


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
