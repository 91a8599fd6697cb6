"""Mask2Former on COCO, decoded like mmdet's instance head, which GenEval's official evaluator uses.

Weights: `facebook/mask2former-swin-small-coco-instance`. Score = class probability x mean mask probability; box =
extent of the mask. transformers' own post-processing is not used: it resizes to 384 x 384 and gives other scores.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerModel, Mask2FormerPreTrainedModel

from rewards.checkpoint import checkpoint_path, load_pretrained
from t2ir1_ray.benchmarks.base import Found

SHORT_SIDE, LONG_SIDE = 800, 1333
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEPT = 100
"""Candidates (query, class) per image, as mmdet's max_per_image."""
OFFICIAL_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""Names of COCO that GenEval writes otherwise."""


class Segmenter(Mask2FormerPreTrainedModel):
    """`Mask2FormerForUniversalSegmentation` without its training loss, which would need scipy."""

    def __init__(self, config: Mask2FormerConfig):
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, h, w) -> class logits (N, Q, C + 1) and mask logits (N, Q, h / 4, w / 4)."""
        output = self.model(pixel_values, output_hidden_states=True)
        last = output.transformer_decoder_intermediate_states[-1].transpose(0, 1)
        return self.class_predictor(last), output.masks_queries_logits[-1]


class Mask2Former:
    """Finds COCO's 80 classes by the names that GenEval gives them."""

    def __init__(self, path: str, device: str, dtype: str, batch_size: int, short_side: int = SHORT_SIDE):
        """short_side: pixels to which the shorter side is resized."""
        self.model = load_pretrained(Segmenter, checkpoint_path(path), device, dtype)
        labels = self.model.config.id2label
        self.names = [OFFICIAL_NAMES.get(labels[index], labels[index]) for index in range(len(labels))]
        self.device, self.dtype, self.batch_size, self.short_side = (
            device,
            getattr(torch, dtype),
            batch_size,
            short_side,
        )

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray], classes: Sequence[str]) -> list[list[Found]]:
        """Instances of these classes in each (H, W, 3) uint8 image, of any score, surest first.

        Raises ValueError for a class that the checkpoint does not know.
        """
        if unknown := sorted(set(classes) - set(self.names)):
            raise ValueError(f"the detector knows no {unknown[0]!r}: give a checkpoint for COCO instances")
        return [self._detect(image, set(classes)) for image in images]

    def _detect(self, image: np.ndarray, classes: set[str]) -> list[Found]:
        height, width = image.shape[:2]
        classified, masks = self.model(self.preprocess(image).to(self.device, self.dtype))
        found = decode(classified[0].float(), masks[0].float(), (height, width))
        return [
            Found(self.names[label], score, box, mask)
            for label, score, box, mask in found
            if self.names[label] in classes
        ]

    def preprocess(self, image: np.ndarray) -> Tensor:
        """(1, 3, h, w) float32: keep-ratio bilinear resize, ImageNet mean and deviation."""
        height, width = image.shape[:2]
        scale = min(self.short_side / min(height, width), LONG_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.float32) / 255
        return torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None]


def decode(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]
) -> list[tuple[int, float, tuple[float, float, float, float], np.ndarray]]:
    """(label, score, box, mask) of the KEPT likeliest (query, class) pairs, surest first; empty masks are left out.

    class_logits: (Q, C + 1), the last for "nothing". mask_logits: (Q, h, w). size: (H, W) of the image.
    """
    classes = class_logits.shape[-1] - 1
    probabilities, places = class_logits.softmax(-1)[:, :-1].flatten().topk(min(KEPT, len(class_logits) * classes))
    masks = interpolate(mask_logits[None], size, mode="bilinear", align_corners=False)[0]
    found = []
    for probability, place in zip(probabilities.tolist(), places.tolist(), strict=True):
        query, label = divmod(place, classes)
        inside = masks[query] > 0
        if not inside.any():
            continue
        score = probability * masks[query].sigmoid()[inside].mean().item()
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        found.append((label, score, box, inside.cpu().numpy()))
    return sorted(found, key=lambda one: -one[1])
