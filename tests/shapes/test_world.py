"""The shapes world: what is rendered is read back, what is said is parsed back, and the split does not leak."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.detection import detection_score
from t2ir1_ray.config import SHIPPED
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.shapes.prompts import (
    TASK_TYPES,
    Requirement,
    is_held_out,
    parse_prompt,
    row,
    sample_requirement,
    sample_scene,
    sentence,
)
from t2ir1_ray.shapes.recipes.corrupt import corrupt, random_scene
from t2ir1_ray.shapes.recipes.habits import DRAWING, PLANNING
from t2ir1_ray.shapes.verify import image_follows_plan, verify_image, verify_plan
from t2ir1_ray.shapes.world import Scene, parse_plan, read_scene, render, write_plan

FIGURES = ("accuracy", "plan", "follows")
SEEDS = st.integers(0, 2**32 - 1)
TASKS = st.sampled_from(TASK_TYPES)


def drawn(seed: int, task: str) -> tuple[Requirement, Scene]:
    rng = random.Random(seed)
    requirement = sample_requirement(rng, task)
    return requirement, sample_scene(requirement, rng)


def test_renders_are_read_exactly_and_under_noise() -> None:
    rng, noise = random.Random(0), np.random.default_rng(0)
    for _ in range(500):
        scene = random_scene(rng, rng.randint(1, 9))
        pixels = render(scene)
        assert read_scene(pixels).shows(scene)
        noisy = np.clip(pixels + noise.normal(0, 20, pixels.shape), 0, 255)
        assert read_scene(noisy).shows(scene)


@given(SEEDS, TASKS)
def test_prompts_and_plans_are_parsed_back(seed: int, task: str) -> None:
    requirement, scene = drawn(seed, task)
    assert parse_prompt(sentence(requirement)) == requirement
    plan = write_plan(scene)
    assert parse_plan(plan) == scene
    assert parse_plan(plan.replace(",", " ,").replace(".", " .")) == scene


@given(SEEDS, TASKS)
def test_a_right_scene_is_right_and_exactly_one_mistake_is_judged_by_the_requirement(seed: int, task: str) -> None:
    requirement, scene = drawn(seed, task)
    prompt = sentence(requirement)
    assert verify_image(prompt, render(scene))
    assert verify_plan(prompt, write_plan(scene))
    assert image_follows_plan(write_plan(scene), render(scene))
    wrong = corrupt(scene, random.Random(seed))
    assert verify_image(prompt, render(wrong)) == requirement.satisfied_by(wrong)
    assert not image_follows_plan(write_plan(scene), render(wrong))


@given(SEEDS, TASKS)
def test_a_half_formed_object_is_not_taken_for_one(seed: int, task: str) -> None:
    _, scene = drawn(seed, task)
    pixels = render(scene)
    item = scene[0]
    top, left = item.row * 8, item.col * 8
    pixels[top : top + 4, left : left + 7] = render(())[:4, :7]
    assert not read_scene(pixels).shows(scene)


@given(SEEDS, TASKS)
def test_the_split_ignores_wording(seed: int, task: str) -> None:
    requirement, _ = drawn(seed, task)
    if requirement.relation is None:
        turned = Requirement(requirement.nouns[::-1])
    else:
        opposite = {"above": "below", "below": "above", "next to": "next to"}
        opposite |= {"on the left of": "on the right of", "on the right of": "on the left of"}
        first, second, *rest = requirement.nouns
        turned = Requirement((second, first, *rest), opposite[requirement.relation])
    assert turned.canonical() == requirement.canonical()
    assert is_held_out(turned) == is_held_out(requirement)


@given(SEEDS, st.sampled_from(["spatial", "numeracy", "color", "texture", "object", "complex"]))
def test_a_perfect_detector_gets_full_marks(seed: int, task: str) -> None:
    requirement, scene = drawn(seed, task)
    detections = [
        {"noun": noun.name, "phrase": noun.name, "box": item.box, "score": 0.9}
        for noun in dict.fromkeys(requirement.nouns)
        for item in scene
        if noun.matches(item)
    ]
    full = 0.9 if task == "spatial" else 1.0
    assert detection_score(row(requirement, task), detections, "fixed") == pytest.approx(full)


def test_shipped_prompts_do_not_leak_and_cover_every_task() -> None:
    train, heldout = (read_prompts(Path(str(SHIPPED)) / f"prompts_{side}.jsonl") for side in ("train", "heldout"))
    scenes = [{parse_prompt(p).canonical() for p in table["prompt"].to_pylist()} for table in (train, heldout)]
    assert not scenes[0] & scenes[1]
    assert set(heldout["task_type"].to_pylist()) == set(TASK_TYPES)
    assert len(heldout) >= 384


def test_the_manifest_describes_the_shipped_files() -> None:
    folder = Path(str(SHIPPED))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    present = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json"}
    assert present == files.keys()
    assert sum(entry["bytes"] for entry in files.values()) <= 8_000_000
    for name, entry in files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name


def test_the_manifest_says_what_the_base_leaves_to_learn_and_that_the_reward_sees_it() -> None:
    figures = json.loads((Path(str(SHIPPED)) / "manifest.json").read_text())["figures"]
    assert 0.35 <= figures["base T=1/accuracy"] <= 0.50
    assert 0.55 <= figures["base greedy/accuracy"] <= 0.70
    for name in (*PLANNING, *DRAWING):
        assert figures[f"base greedy/habit/{name}"] < 0.3, name
    for task in TASK_TYPES:
        assert {f"base {way}/{figure}/{task}" for way in ("T=1", "greedy") for figure in FIGURES} <= figures.keys()
        assert figures[f"AUC/sum/{task}"] >= 0.65, task
