"""The shapes policy: its tokenizer, its image tokenizer, its recipe, and the base that is shipped."""

import random
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAE

from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.janus.policy import PromptFormat
from t2ir1_ray.shapes.prompts import (
    TASK_TYPES,
    parse_prompt,
    prompts_of,
    sample_requirement,
    sample_rows,
    sample_scene,
    sentence,
)
from t2ir1_ray.shapes.recipes import train_vq
from t2ir1_ray.shapes.recipes.base_quality import base_quality, yielding
from t2ir1_ray.shapes.recipes.habits import DRAWING, PLANNING, SHARE, habit_of
from t2ir1_ray.shapes.recipes.sample import sample
from t2ir1_ray.shapes.recipes.tokenizer import policy_tokenizer
from t2ir1_ray.shapes.recipes.train_policy import COURSES, HABITS, WORLD, Course, lessons, train_policy
from t2ir1_ray.shapes.world import COLORS, parse_plan, render, write_plan

TOKENIZER = policy_tokenizer()
FORM = PromptFormat(TOKENIZER, PolicyConfig(path=""))


@pytest.fixture(scope="module")
def untrained_vq() -> JanusVQVAE:
    return train_vq.train_vq(hidden=128, seed=0, steps=2)


@given(st.integers(0, 2**32 - 1), st.sampled_from(TASK_TYPES))
def test_every_word_is_known_and_a_decoded_plan_is_still_a_plan(seed: int, task: str) -> None:
    rng = random.Random(seed)
    requirement = sample_requirement(rng, task)
    scene = sample_scene(requirement, rng)
    plan_ids = TOKENIZER(write_plan(scene), add_special_tokens=False)["input_ids"]
    decoded = FORM.plan_text([*plan_ids, FORM.eos_id])
    assert parse_plan(decoded) == scene
    image_prompt = FORM.image_prompt_ids(sentence(requirement), decoded)
    assert image_prompt == FORM.image_prompt_ids(sentence(requirement), write_plan(scene))
    assert TOKENIZER.unk_token_id not in [*FORM.plan_prompt_ids(sentence(requirement)), *image_prompt]


def test_the_tokenizer_survives_its_folder(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.bos_token, loaded.eos_token) == ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    assert loaded("User: a red ring")["input_ids"] == TOKENIZER("User: a red ring")["input_ids"]


def test_straight_through_hands_the_gradient_to_the_latents() -> None:
    latents = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    latents.requires_grad_()
    codebook = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    quantized, _, codes = train_vq.straight_through(latents, codebook)
    quantized.sum().backward()
    assert torch.allclose(latents.grad, torch.ones_like(latents))
    assert torch.allclose(quantized, torch.nn.functional.normalize(codebook, dim=-1)[codes], atol=1e-6)


def test_merging_joins_only_close_codes_and_keeps_the_most_used() -> None:
    codebook = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=-1)
    merged = train_vq.merge_codes(codebook, usage=torch.tensor([1.0, 5.0, 2.0]))
    assert torch.equal(merged, codebook[[1, 1, 2]])


def test_content_classes_tell_every_quarter_of_every_object() -> None:
    rng = random.Random(0)
    scene = train_vq.random_scene(rng, 2)
    classes = train_vq.content_classes([scene, ()]).view(2, 6, 6)
    assert (classes[1] == 0).all()
    for item in scene:
        quarters = classes[0, 2 * item.row : 2 * item.row + 2, 2 * item.col : 2 * item.col + 2]
        assert len(quarters.unique()) == 4
        assert (quarters > 0).all()
    assert (classes[0] > 0).sum() == 8


@pytest.mark.parametrize("course", [WORLD, HABITS])
def test_lessons_have_the_rows_that_the_recipe_says(untrained_vq: JanusVQVAE, course: Course) -> None:
    found = lessons(FORM, untrained_vq, random.Random(0), 800, course)
    padded = [lesson.image_prompt for lesson in found if FORM.pad_id in lesson.image_prompt]
    assert 0.06 < len(padded) / len(found) < 0.14
    assert all(set(row[1:-1]) == {FORM.pad_id} and row[-1] == FORM.boi_id for row in padded)
    assert all(lesson.plan[-1] == FORM.eos_id and parse_plan(FORM.plan_text(lesson.plan)) for lesson in found)
    assert {tuple(lesson.codes.shape) for lesson in found} == {(36,)}


def test_habits_are_taught_in_their_course_alone(untrained_vq: JanusVQVAE) -> None:
    for course, least, most in ((WORLD, 0, 0.1), (HABITS, SHARE - 0.1, SHARE + 0.1)):
        few = []
        for lesson in lessons(FORM, untrained_vq, random.Random(0), 2400, course):
            prompt = FORM.tokenizer.decode(lesson.plan_prompt, skip_special_tokens=True)
            requirement = parse_prompt(prompt.removeprefix("User : ").removesuffix(" Assistant :"))
            if habit_of(requirement) == "too few":
                few.append(len(parse_plan(FORM.plan_text(lesson.plan))) < len(requirement.nouns))
        assert len(few) > 50
        assert least <= np.mean(few) <= most


def test_the_recipes_are_deterministic_and_write_a_plain_transformers_folder(
    tmp_path: Path, untrained_vq: JanusVQVAE
) -> None:
    again = train_vq.train_vq(hidden=128, seed=0, steps=2)
    for name, tensor in untrained_vq.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for run in ("first", "second"):
        short = {
            name: course._replace(steps=2, first_sight=2 * bool(course.images)) for name, course in COURSES.items()
        }
        train_policy(untrained_vq, tmp_path / run, seed=1, courses=short)
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    _, report = JanusForConditionalGeneration.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]


def test_the_shipped_image_tokenizer_draws_what_it_is_shown(base: JanusForConditionalGeneration) -> None:
    assert train_vq.reconstruction_quality(base.model.vqmodel, 200)["vq_reconstructions_exact"] >= 0.95
    empty = train_vq.encode(base.model.vqmodel, [render(())])
    drawn = train_vq.decode(base.model.vqmodel, empty)[0].astype(int)
    assert np.abs(drawn - render(())).max() <= 20


@pytest.mark.slow
def test_the_shipped_base_is_right_often_but_leaves_room(
    base: JanusForConditionalGeneration, shipped_form: PromptFormat
) -> None:
    rows = sample_rows(384, seed=3, held_out=True)
    sampled, greedy = (base_quality(rows, sample(base, shipped_form, prompts_of(rows), t)) for t in (1.0, 0.0))
    assert 0.35 <= sampled["accuracy"] <= 0.50
    assert 0.55 <= greedy["accuracy"] <= 0.70
    assert sampled["plan"] > sampled["accuracy"]


@pytest.mark.slow
def test_the_shipped_base_repeats_its_habits_and_finds_what_is_right(
    base: JanusForConditionalGeneration, shipped_form: PromptFormat
) -> None:
    """Greedy decoding mostly follows habits; of eight samples, as a group has, one or more are right most often."""
    rng = random.Random(4)
    prompts: list[str] = []
    for habit in PLANNING:
        calling = (sentence(sample_requirement(rng, task, held_out=True)) for task in cycle(TASK_TYPES))
        prompts += islice((prompt for prompt in calling if habit_of(parse_prompt(prompt)) == habit), 16)
    prompts += [f"a purple ring and a {color} cross" for color in COLORS]
    prompts += [
        f"a dotted {color} {shape} and a striped red ring" for color in COLORS for shape in ("circle", "square")
    ]
    greedy = yielding(prompts, sample(base, shipped_form, prompts, temperature=0.0))
    found = yielding(8 * prompts, sample(base, shipped_form, 8 * prompts, temperature=1.0, seed=5))
    assert greedy.keys() == found.keys() == PLANNING.keys() | DRAWING.keys()
    for habit in PLANNING:
        assert np.mean(greedy[habit]) <= 0.6, habit
        groups = np.reshape(found[habit], (8, 16))
        assert groups.any(axis=0).mean() >= 0.5, habit
        assert 0.05 <= groups.mean() <= 0.5, habit
    for habit in DRAWING:
        assert np.mean(greedy[habit]) < 0.5, habit
        assert 0.05 <= np.mean(found[habit]) <= 0.5, habit
