"""How well an expert's score tells right images from wrong ones: AUC against the exact verifier on held-out prompts."""

import random
import time
from typing import Any

import numpy as np

from rewards.base import Expert
from t2ir1_ray.shapes.prompts import TASK_TYPES, row
from t2ir1_ray.shapes.recipes.expert_samples import JudgedSample, judged_sample
from t2ir1_ray.shapes.recipes.expert_training import auc

Samples = tuple[np.ndarray, list[dict[str, Any]], np.ndarray]
"""images (N, 24, 24, 3) uint8, prompt rows, and whether each image is right (N,) bool."""


def corrupted_renders(count: int, seed: int = 1234) -> Samples:
    """Held-out prompts with right images and with images that hold a mistake, about as many, task types in turn."""
    rng = random.Random(seed)
    samples: list[JudgedSample] = []
    rows = []
    for index in range(count):
        task_type = TASK_TYPES[index % len(TASK_TYPES)]
        samples.append(judged_sample(rng, wrong=0.5, held_out=True, task_type=task_type))
        rows.append(row(samples[-1].requirement, task_type))
    return np.stack([s.image for s in samples]), rows, np.array([s.correct for s in samples])


def quality(expert: Expert, samples: Samples) -> dict[str, float]:
    """`auc` over the samples it applies to, `auc/<task_type>`, and `seconds_per_64` images."""
    images, rows, correct = samples
    started = time.process_time()
    scores = expert.score(images, rows)
    seconds = time.process_time() - started
    ok = np.array([status == "ok" for status in scores.status])
    figures = {"auc": auc(scores.scores[ok], correct[ok]), "seconds_per_64": 64 * seconds / len(rows)}
    task_types = np.array([record["task_type"] for record in rows])
    for task_type in TASK_TYPES:
        chosen = ok & (task_types == task_type)
        if chosen.any():
            figures[f"auc/{task_type}"] = auc(scores.scores[chosen], correct[chosen])
    return figures
