"""Human Preference Score v2.1: cosine between CLIP features of the image and of the prompt, without the logit scale.

Paper: arXiv 2306.09341. Weights: `HPS_v2.1_compressed.pt` (ViT-H-14), which plain open_clip loads strictly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from rewards.base import Row, index_of_each
from rewards.batched import BatchedExpert
from rewards.checkpoint import checkpoint_path
from rewards.clip import load_clip
from rewards.image_processor import check_normalisation


class HpsExpert(BatchedExpert):
    """Human preference of an image for its prompt, in -1..1 (0.2-0.35 is usual). Applies to every prompt."""

    name = "hps"
    value_range = (-1.0, 1.0)

    def __init__(
        self, path: str, device: str = "cpu", dtype: str = "float32", arch: str = "ViT-H-14", batch_size: int = 32
    ) -> None:
        """path: `HPS_v2.1_compressed.pt` with its architecture `arch`, or a folder in open_clip's own layout."""
        super().__init__(batch_size)
        check_normalisation(Path(checkpoint_path(path)), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        self.model, self.tokenizer = load_clip(path, arch, device, dtype)
        self.device, self.dtype = device, getattr(torch, dtype)
        size = self.model.visual.image_size
        self.size = size[0] if isinstance(size, tuple) else size
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )

    def prepare(self, image: np.ndarray) -> Tensor:
        """(1, 3, size, size) float32: longest side to `size`, zero padding to a square, CLIP's mean and deviation.

        This is the preprocessing of the hpsv2 package; open_clip's default crops instead.
        """
        return (resize_longest(torch.tensor(image, device=self.device), self.size) - self.mean) / self.std

    @torch.inference_mode()
    def score_batch(self, prepared: list[Tensor], rows: list[Row]) -> np.ndarray:
        prompts, prompt_of_row = index_of_each([row["prompt"] for row in rows])  # a group shares its prompt
        text = self.model.encode_text(self.tokenizer(prompts).to(self.device), normalize=True)
        image = self.model.encode_image(torch.cat(prepared).to(self.dtype), normalize=True)
        return (image.float() * text.float()[prompt_of_row]).sum(-1).cpu().numpy()


def resize_longest(image: Tensor, size: int) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, size, size) float32 in about 0..1, bicubic with antialias, padded with zeros."""
    height, width = image.shape[:2]
    pixels = image.permute(2, 0, 1)[None].float() / 255
    if max(height, width) != size:
        scale = size / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    top, left = (size - height) // 2, (size - width) // 2
    return pad(pixels, (left, size - width - left, top, size - height - top))
