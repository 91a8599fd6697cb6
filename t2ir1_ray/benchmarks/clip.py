"""OpenAI's CLIP as benchmarks use it: raw cosines, and the colour of an object."""

from collections.abc import Sequence

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from rewards.base import Row
from rewards.batched import BatchedExpert
from rewards.clip import load_clip
from t2ir1_ray.benchmarks.geneval import COLOR_TEMPLATES, COLORS


class Clip(BatchedExpert):
    """open_clip's own preprocessing: shortest side bicubic, then the centre."""

    name = "clip"
    value_range = (-1.0, 1.0)

    def __init__(self, path: str, device: str, dtype: str, batch_size: int, arch: str = "ViT-B-32-quickgelu"):
        """path, arch: as in `rewards.clip.load_clip`."""
        super().__init__(batch_size)
        self.model, self.tokenizer = load_clip(path, arch, device, dtype)
        self.device, self.dtype = device, getattr(torch, dtype)
        self.transform = open_clip.image_transform(
            self.model.visual.image_size,
            is_train=False,
            mean=open_clip.OPENAI_DATASET_MEAN,
            std=open_clip.OPENAI_DATASET_STD,
        )

    def prepare(self, image: np.ndarray) -> Tensor:
        """(3, size, size) float32."""
        return self.transform(Image.fromarray(image))

    @torch.inference_mode()
    def score_batch(self, prepared: list[Tensor], rows: list[Row]) -> np.ndarray:
        """Cosines of images and prompts."""
        texts = self._texts([row["prompt"] for row in rows])
        return (self._images(prepared) * texts).sum(-1).cpu().numpy()

    @torch.inference_mode()
    def colors(self, crops: Sequence[Image.Image], name: str) -> list[str]:
        """Each crop's nearest colour, by the mean of GenEval's three templates."""
        if not crops:
            return []
        texts = [template.format(color=color, name=name) for color in COLORS for template in COLOR_TEMPLATES]
        features = self._texts(texts).view(len(COLORS), len(COLOR_TEMPLATES), -1).mean(1)
        features = features / features.norm(dim=-1, keepdim=True)
        images = self._images([self.transform(crop) for crop in crops])
        return [COLORS[index] for index in (images @ features.T).argmax(-1).tolist()]

    def _images(self, prepared: Sequence[Tensor]) -> Tensor:
        pixels = torch.stack(list(prepared)).to(self.device, self.dtype)
        return self.model.encode_image(pixels, normalize=True).float()

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True).float()
