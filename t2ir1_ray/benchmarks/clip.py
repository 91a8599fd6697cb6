"""OpenAI's CLIP as benchmarks use it: raw cosines, and the colour of an object."""

from collections.abc import Sequence

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from rewards.base import ExpertScores, Images, Row, score_in_batches
from rewards.clip import load_clip
from t2ir1_ray.benchmarks.geneval import COLOR_TEMPLATES, COLORS


class Clip:
    """open_clip's own preprocessing: shortest side bicubic, then the centre."""

    name = "clip"

    def __init__(self, path: str, device: str, dtype: str, batch_size: int, arch: str = "ViT-B-32-quickgelu"):
        """path, arch: as in `rewards.clip.load_clip`."""
        self.model, self.tokenizer = load_clip(path, arch, device, dtype)
        self.device, self.dtype, self.batch_size = device, getattr(torch, dtype), batch_size
        self.transform = open_clip.image_transform(
            self.model.visual.image_size,
            is_train=False,
            mean=open_clip.OPENAI_DATASET_MEAN,
            std=open_clip.OPENAI_DATASET_STD,
        )

    def score(self, images: Images, rows: Sequence[Row]) -> ExpertScores:
        return score_in_batches(self.name, images, rows, lambda row: True, self._cosines, self.batch_size)

    @torch.inference_mode()
    def colors(self, crops: Sequence[Image.Image], name: str) -> list[str]:
        """Each crop's nearest colour, by the mean of GenEval's three templates."""
        if not crops:
            return []
        texts = [template.format(color=color, name=name) for color in COLORS for template in COLOR_TEMPLATES]
        features = self._texts(texts).view(len(COLORS), len(COLOR_TEMPLATES), -1).mean(1)
        features = features / features.norm(dim=-1, keepdim=True)
        return [COLORS[index] for index in (self._images(crops) @ features.T).argmax(-1).tolist()]

    @torch.inference_mode()
    def _cosines(self, images: list[np.ndarray], rows: list[Row]) -> np.ndarray:
        texts = self._texts([row["prompt"] for row in rows])
        return (self._images([Image.fromarray(image) for image in images]) * texts).sum(-1).cpu().numpy()

    def _images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self.transform(image) for image in images]).to(self.device, self.dtype)
        return self.model.encode_image(pixels, normalize=True).float()

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True).float()
