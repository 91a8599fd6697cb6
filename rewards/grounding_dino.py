"""GroundingDINO as the object-detector expert, in the "given phrase" mode that T2I-R1 uses.

Paper: arXiv 2303.05499. Weights: `IDEA-Research/grounding-dino-tiny`. All nouns of a prompt go into one caption
("cat . sports ball."); a query's score for a noun is the mean of its sigmoid logits over the noun's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import transformers.models.grounding_dino.modeling_grounding_dino as grounding_dino
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

from rewards.base import NonFiniteScore
from rewards.checkpoint import checkpoint_path, load_pretrained, load_tokenizer
from rewards.detection import Box, Compat, Detection, Directions
from rewards.detector import DetectorExpert, official_phrase
from rewards.image_processor import load_image_processor

Span = tuple[int, int]


class GroundingDinoExpert(DetectorExpert):
    """The official detector reward. float32 is the precision its published numbers come from."""

    name = "grounding_dino"

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        compat: Compat = "fixed",
        directions: Directions = "dominant",
        box_threshold: float = 0.3,
        batch_size: int = 8,
    ) -> None:
        super().__init__(compat, directions, box_threshold, batch_size)
        path = checkpoint_path(path)
        mend_transformers()
        self.model = load_pretrained(GroundingDinoForObjectDetection, path, device, dtype, disable_custom_kernels=True)
        self.tokenizer = load_tokenizer(path)
        self.image_processor = load_image_processor(GroundingDinoImageProcessorPil, path)
        self.device, self.dtype = device, getattr(torch, dtype)

    def prepare(self, image: np.ndarray) -> Tensor:
        """(3, H, W) float32, as the checkpoint's processor says."""
        return self.image_processor(images=image, return_tensors="pt").pixel_values[0]

    @torch.inference_mode()
    def find(self, prepared: Sequence[Tensor], nouns: Sequence[Sequence[str]]) -> list[list[Detection]]:
        found: list[list[Detection]] = [[] for _ in prepared]
        for shape in dict.fromkeys(image.shape for image in prepared):  # one size per pass: padding moves the boxes
            members = [index for index, image in enumerate(prepared) if image.shape == shape]
            results = self._find_same_size(torch.stack([prepared[i] for i in members]), [nouns[i] for i in members])
            for index, result in zip(members, results, strict=True):
                found[index] = result
        return found

    def _find_same_size(self, pixels: Tensor, nouns: list[Sequence[str]]) -> list[list[Detection]]:
        captions = [caption_of(names, whole_nouns=self.compat == "fixed") for names in nouns]
        encoded = self.tokenizer(
            [caption.text for caption in captions],
            padding=True,
            truncation=True,
            max_length=self.model.config.max_text_len,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        output = self.model(
            pixel_values=pixels.to(self.device, self.dtype),
            input_ids=encoded.input_ids.to(self.device),
            attention_mask=encoded.attention_mask.to(self.device),
        )
        scores = output.logits.float().sigmoid().cpu()[..., : encoded.input_ids.shape[1]]  # (N, queries, L)
        boxes = output.pred_boxes.float().cpu()
        return [
            self._above_threshold(names, token_weights(caption, offsets) @ scores[index].T, boxes[index])
            for index, (names, caption, offsets) in enumerate(zip(nouns, captions, encoded.offset_mapping, strict=True))
        ]

    def _above_threshold(self, nouns: Sequence[str], scores: Tensor, boxes: Tensor) -> list[Detection]:
        """scores: (nouns, queries). boxes: (queries, 4) as (cx, cy, w, h) in 0..1."""
        if not torch.isfinite(scores).all():
            raise NonFiniteScore(f"{self.name}: the detector's scores are not finite (nouns {list(nouns)})")
        return [
            Detection(noun, official_phrase(noun), Box(*boxes[query].tolist()), scores[index, query].item())
            for index, noun in enumerate(nouns)
            for query in (scores[index] > self.box_threshold).nonzero().flatten().tolist()
        ]


class Caption(NamedTuple):
    """text: what the detector is asked for. spans: for every noun, the character ranges that stand for it."""

    text: str
    spans: list[list[Span]]


def caption_of(nouns: Sequence[str], whole_nouns: bool = True) -> Caption:
    """ "cat . sports ball." and where each noun stands in it.

    whole_nouns=False marks only a noun's first and last word, as the official code does. The separators "." and "?"
    inside a noun are left out, as they would end the phrase.
    """
    text, spans = "", []
    for noun in nouns:
        words = noun.lower().replace(".", " ").replace("?", " ").split()
        text += " . " if text else ""
        start = len(text)
        text += " ".join(words)
        if not words:
            spans.append([])
        elif whole_nouns:
            spans.append([(start, len(text))])
        else:
            spans.append([(start, start + len(words[0])), (len(text) - len(words[-1]), len(text))])
    return Caption(text + ".", spans)


def token_weights(caption: Caption, offsets: Tensor) -> Tensor:
    """(nouns, L) float32: each noun's row averages over the tokens inside its spans; zeros if truncation cut it off.

    offsets: (L, 2) character range of every token, empty for special tokens and padding.
    """
    start, end = offsets.T
    weights = torch.zeros(len(caption.spans), len(offsets))
    for row, spans in zip(weights, caption.spans, strict=True):
        for first, last in spans:
            row[(start < last) & (end > first) & (end > start)] = 1
    return weights / (weights.sum(-1, keepdim=True) + 1e-6)


# --- two defects of transformers 5.19 -------------------------------------------------------------------------------


def mend_transformers() -> None:
    """Give transformers' GroundingDINO the numbers of the original, if it does not compute them already.

    Version 5.19 (1) casts the sine embedding of text positions back to int64 and (2) gives a phrase's closing "." the
    position 0 instead of its offset; logits are then off by up to 13. Both functions are tried on known values first,
    so a version that has been corrected is left alone. Calling this again changes nothing.
    """
    ids = torch.tensor([[101, 7, 8, 1012, 9, 1012, 102]])
    _, positions = grounding_dino.generate_masks_with_special_tokens_and_transfer_map(ids)
    if positions.tolist() != [[0, 0, 1, 2, 0, 1, 0]]:
        grounding_dino.generate_masks_with_special_tokens_and_transfer_map = phrase_masks_and_positions

    layer = grounding_dino.GroundingDinoEncoderLayer
    embed = layer.get_text_position_embeddings
    if not embed(SimpleNamespace(d_model=4), torch.zeros(1, 2, 4), None, torch.tensor([[0, 1]])).is_floating_point():

        def embed_as_float(self, text_features, text_position_embedding, text_position_ids):
            if text_position_ids is not None:
                text_position_ids = text_position_ids.to(text_features.dtype)
            return embed(self, text_features, text_position_embedding, text_position_ids)

        layer.get_text_position_embeddings = embed_as_float


def phrase_masks_and_positions(input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Which text tokens see each other, (N, L, L) bool, and the positions inside their phrase, (N, L) int64.

    A phrase ends with a special token ("." for instance), which belongs to it and continues its positions. Source:
    `generate_masks_with_special_tokens_and_transfer_map` of the original GroundingDINO repository.
    """
    count, length = input_ids.shape
    special = torch.isin(input_ids, torch.tensor(grounding_dino.SPECIAL_TOKENS, device=input_ids.device))
    mask = torch.eye(length, dtype=torch.bool, device=input_ids.device).repeat(count, 1, 1)
    positions = torch.zeros_like(input_ids)
    for row in range(count):
        previous = 0
        for end in special[row].nonzero().flatten().tolist():
            if end not in (0, length - 1):
                mask[row, previous + 1 : end + 1, previous + 1 : end + 1] = True
                positions[row, previous + 1 : end + 1] = torch.arange(end - previous, device=input_ids.device)
            previous = end
    return mask, positions
