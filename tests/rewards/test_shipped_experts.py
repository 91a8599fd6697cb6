"""The experts that come with the package know right from wrong on held-out prompts, and are small and fast."""

import numpy as np
import pytest

from rewards import load_expert
from rewards.ensemble import combine
from rewards.score import SHIPPED_WEIGHTS
from t2ir1_ray.shapes.build import base_samples
from t2ir1_ray.shapes.recipes.expert_quality import corrupted_renders, quality
from t2ir1_ray.shapes.recipes.expert_training import auc, folder_bytes

LEAST_AUC = {"hps": 0.92, "git": 0.8, "grounding_dino": 0.78, "orm": 0.85}


@pytest.fixture(scope="module")
def samples():
    return corrupted_renders(320)


@pytest.mark.parametrize("kind", LEAST_AUC)
def test_an_expert_prefers_right_images(kind, samples):
    figures = quality(load_expert(kind, str(SHIPPED_WEIGHTS / kind), batch_size=64), samples)
    assert figures["auc"] > LEAST_AUC[kind]
    assert figures["seconds_per_64"] < 2


@pytest.mark.slow
def test_on_what_the_base_draws_the_sum_is_better_than_the_best_expert_alone():
    rows, images, correct = base_samples(SHIPPED_WEIGHTS / "policy", 512)
    scores = {kind: load_expert(kind, str(SHIPPED_WEIGHTS / kind)).score(images, rows) for kind in LEAST_AUC}
    rewards, keep = combine(scores, dict.fromkeys(LEAST_AUC, 1.0))
    assert keep.all()
    alone = [auc(expert.scores, correct) for expert in scores.values() if np.isfinite(expert.scores).all()]
    assert auc(rewards, correct) > max(alone)


def test_the_shipped_experts_are_small():
    assert sum(folder_bytes(SHIPPED_WEIGHTS / kind) for kind in LEAST_AUC) < 3_000_000
