"""WitnessActor: hosts one model that benchmarks ask about images, an expert of `rewards/` or one of this folder."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors.expert import ExpertActor
from actors.startup import take_device, uncollected
from rewards.detection import suppress
from rewards.experts import BAD_CHECKPOINT
from t2ir1_ray.benchmarks.base import Found
from t2ir1_ray.benchmarks.geneval import color_crop, select
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.schema import Rollouts

OWN_KINDS = ("mask2former", "clip")


class WitnessActor(ExpertActor):
    """Every method answers for each image of a `Rollouts` batch; keeps no state between calls."""

    def __init__(self, kind: str, path: str, dtype: str, batch_size: int, options: dict[str, Any]):
        if kind not in OWN_KINDS:
            super().__init__(kind, path, dtype, batch_size, options)
            return
        with uncollected():
            from t2ir1_ray.benchmarks.clip import Clip
            from t2ir1_ray.benchmarks.mask2former import Mask2Former

        try:
            model_class = {"mask2former": Mask2Former, "clip": Clip}[kind]
            self.expert = model_class(path, device=take_device(), dtype=dtype, batch_size=batch_size, **options)
        except BAD_CHECKPOINT as error:
            raise UserError(f"expert {kind}: {path}: {' '.join(str(error).split())[:300]}") from error

    def detect(self, rollouts: pa.RecordBatch, classes: Sequence[str]) -> list[list[Found]]:
        """Objects of these classes. Boxes of a detector that was trained without a limit of one per object are
        suppressed at an IoU of 0.5."""
        images = self._images(rollouts)
        if not classes:
            return [[] for _ in images]
        if not hasattr(self.expert, "box_threshold"):  # segments, one mask per object
            return self.expert.detect(images, classes)
        answers = []
        for start in range(0, len(images), self.expert.batch_size):
            batch = images[start : start + self.expert.batch_size]
            for image, detections in zip(batch, self.expert.detect(batch, [classes] * len(batch)), strict=True):
                height, width = image.shape[:2]
                found = [
                    Found(one.noun, one.score, tuple(np.multiply(one.box.corners, (width, height) * 2).tolist()))
                    for one in detections
                ]
                answers.append([one for name in classes for one in _distinct(found, name)])
        return answers

    def ask(self, rollouts: pa.RecordBatch, questions: Sequence[str]) -> list[list[float]]:
        """p(yes) of "<question>?" for each question."""
        images = self._images(rollouts)
        if not questions:
            return [[] for _ in images]
        rows = [{"prompt": q, "task_type": "object", "nouns": [q], "attr_nouns": None} for q in questions]
        scores = self.expert.score([image for image in images for _ in rows], rows * len(images)).scores
        return scores.reshape(len(images), len(rows)).astype(float).tolist()

    def compare(self, rollouts: pa.RecordBatch, text: str) -> list[float]:
        """Cosine of image and text."""
        images = self._images(rollouts)
        return self.expert.score(images, [{"prompt": text}] * len(images)).scores.astype(float).tolist()

    def colors(
        self, rollouts: pa.RecordBatch, found: Sequence[Sequence[Found]], counts: Mapping[str, int], threshold: float
    ) -> list[dict[str, list[str]]]:
        """GenEval's colours of the `counts[name]` surest objects of each class, by class."""
        images = self._images(rollouts)
        answers: list[dict[str, list[str]]] = []
        for image, seen in zip(images, found, strict=True):
            objects = select(seen, threshold)
            answers.append(
                {
                    name: self.expert.colors([color_crop(image, one) for one in objects.get(name, [])[:count]], name)
                    for name, count in counts.items()
                }
            )
        return answers

    @staticmethod
    def _images(rollouts: pa.RecordBatch) -> list[np.ndarray]:
        return list(Rollouts.from_arrow(rollouts).pixels)


def _distinct(found: Sequence[Found], name: str) -> list[Found]:
    named = [one for one in found if one.label == name]
    return [named[index] for index in suppress([one.box for one in named], [one.score for one in named])]
