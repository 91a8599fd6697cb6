"""Recipes of the shapes experts: their pure parts, and that a short run writes a folder the loader opens."""

import random
from itertools import permutations

import numpy as np
import pytest
import torch

from rewards import load_expert
from t2ir1_ray.shapes.build import auc_by_task
from t2ir1_ray.shapes.prompts import sample_rows
from t2ir1_ray.shapes.recipes import train_git, train_grounding_dino, train_hps, train_orm
from t2ir1_ray.shapes.recipes.expert_training import (
    attribute_labels,
    auc,
    crowded_scene,
    learning_rates,
    matches,
    near_miss,
    phrase_of,
    picture,
)
from t2ir1_ray.shapes.world import Item, read_scene, render

RECIPES = {"hps": train_hps, "git": train_git, "orm": train_orm, "grounding_dino": train_grounding_dino}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_writes_a_checkpoint_and_is_deterministic(kind, tmp_path):
    rows = sample_rows(16, seed=0, held_out=True)
    images = np.stack([render(crowded_scene(random.Random(i), (2, 3))) for i in range(16)])
    scores = []
    for run in ("first", "second"):
        figures = RECIPES[kind].train(tmp_path / run, seed=3, steps=2)
        assert figures["steps"] == 2
        assert figures["bytes"] < 1_300_000
        scores.append(load_expert(kind, str(tmp_path / run)).score(images, rows))
    assert np.array_equal(scores[0].scores, scores[1].scores, equal_nan=True)
    assert "failed" not in scores[0].status
    asked = sum(row["task_type"] not in ("spatial", "numeracy") for row in rows)
    assert scores[0].status.count("ok") == (asked if kind == "git" else len(rows))


def test_auc_is_the_probability_of_the_right_order():
    correct = np.array([True, True, False, False])
    assert auc(np.array([0.9, 0.8, 0.1, 0.2]), correct) == 1.0
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), correct) == 0.5
    assert auc(np.array([0.9, 0.3, 0.5, 0.1]), correct) == 0.75
    assert np.isnan(auc(np.ones(2), np.array([True, True])))


def test_auc_by_task_leaves_out_what_has_no_score():
    scores = np.array([0.9, 0.1, 0.2, 0.8, np.nan])
    tasks = np.array(["color", "color", "spatial", "spatial", "numeracy"])
    found = auc_by_task("hps", scores, np.array([True, False, True, False, True]), tasks)
    assert found == {"AUC/hps": 0.75, "AUC/hps/color": 1.0, "AUC/hps/spatial": 0.0}


def test_an_objects_own_phrase_is_true_and_a_near_miss_differs_from_it():
    rng = random.Random(0)
    wrong = 0
    for _ in range(200):
        scene = crowded_scene(rng, (1,))
        assert matches(phrase_of(scene[0], rng), scene[0])
        wrong += not matches(near_miss(scene, rng), scene[0])
    assert wrong == 200


def test_half_formed_objects_are_not_in_the_truth():
    rng = random.Random(1)
    for _ in range(50):
        image, scene = picture(crowded_scene(rng, (3, 4)), rng, scrambled=1.0)
        assert scene == read_scene(image).items


def test_attribute_labels_mark_the_patches_of_an_object():
    labels = attribute_labels([(Item("striped", "red", "ring", 1, 2),)]).view(6, 6, 3)
    assert labels[2:4, 4:6].reshape(-1, 3).tolist() == [[2, 1, 5]] * 4
    assert labels.count_nonzero() == 12


def test_learning_rates_rise_hold_and_fall():
    rates = list(learning_rates(1.0, 100, warmup=10, hold=0.5, floor=0.1))
    assert rates[0] == 0.1
    assert rates[9:50] == [1.0] * 41
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == 0.1


def test_assignment_is_the_cheapest_one():
    cost = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    chosen = train_grounding_dino.cheapest_assignment(cost)
    for image in range(5):
        assert len(set(chosen[image].tolist())) == 4
        total = sum(cost[image, query, index] for index, query in enumerate(chosen[image].tolist()))
        best = min(sum(cost[image, q, i] for i, q in enumerate(queries)) for queries in permutations(range(6), 4))
        assert total == pytest.approx(best.item(), abs=1e-6)


def test_generalized_iou_of_known_boxes():
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    apart = torch.tensor([0.9, 0.5, 0.2, 0.2])
    assert train_grounding_dino.generalized_iou(box, box).item() == pytest.approx(1)
    assert train_grounding_dino.generalized_iou(box, apart).item() == pytest.approx(-(0.12 - 0.08) / 0.12, abs=1e-5)


def test_noun_phrases_are_read_off_a_prompt():
    found = train_orm.noun_phrases("two dotted red circles and a blue cross next to a square")
    assert found == [(3, ("dotted", "red", "circle")), (7, (None, "blue", "cross")), (11, (None, None, "square"))]
