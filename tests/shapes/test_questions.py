"""Questions about images: the answer is the truth, near misses are near, and the policy's tokenizer knows the words."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ir1_ray.shapes.prompts import TASK_TYPES, sample_requirement, sample_scene
from t2ir1_ray.shapes.questions import ANSWERS, KINDS, Question, sample_question
from t2ir1_ray.shapes.recipes.corrupt import random_scene
from t2ir1_ray.shapes.recipes.tokenizer import policy_processor
from t2ir1_ray.shapes.world import COLORS, COLUMNS, ROWS, SHAPES, TEXTURES, Scene, parse_plan, render

SEEDS = st.integers(0, 2**32 - 1)
PROCESSOR = policy_processor(side=24, tokens=36)


def words(question: Question) -> list[str]:
    asked = question.text.removeprefix("Is there a ").removesuffix(" in the image?").split()
    assert question.text == f"Is there a {' '.join(asked)} in the image?"
    return asked


@given(SEEDS, st.sampled_from(KINDS), st.booleans(), st.integers(1, 4))
def test_the_answer_is_the_truth(seed: int, kind: str, answer: bool, count: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng, count)
    question = sample_question(rng, scene, kind, answer)
    assert (question.answer, question.kind) == (answer, kind)
    asked = words(question)
    if answer:
        assert (" ".join(asked), question.place) in [(i.name, f"{ROWS[i.row]} {COLUMNS[i.col]}") for i in scene]
    else:  # no object has all of these words: so however "a red circle" is understood, none is there
        assert not any(set(asked) <= {item.texture, item.color, item.shape} for item in scene)


@given(SEEDS, st.integers(1, 4))
def test_popular_objects_have_no_texture_and_near_misses_differ_in_one_word(seed: int, count: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng, count)
    assert len(words(sample_question(rng, scene, "popular", False))) == 2
    asked = words(sample_question(rng, scene, "adversarial", False))
    texture, color, shape = asked if len(asked) == 3 else ["solid", *asked]
    assert texture in TEXTURES
    assert color in COLORS
    assert shape in SHAPES
    near = [(item.texture != texture) + (item.color != color) + (item.shape != shape) for item in scene]
    assert min(near) == 1


def test_half_of_the_answers_are_yes_and_all_kinds_occur() -> None:
    rng = random.Random(0)
    scene: Scene = parse_plan("red ring upper left, dotted blue circle lower right.")
    asked = [sample_question(rng, scene) for _ in range(1200)]
    assert sum(question.answer for question in asked) / 1200 == pytest.approx(0.5, abs=0.05)
    assert all(sum(q.kind == kind for q in asked) / 1200 == pytest.approx(1 / 3, abs=0.05) for kind in KINDS)
    assert asked == [sample_question(again, scene) for again in [random.Random(0)] for _ in range(1200)]


@given(SEEDS, st.sampled_from(TASK_TYPES))
def test_the_policys_tokenizer_knows_every_word(seed: int, task: str) -> None:
    rng = random.Random(seed)
    scene = sample_scene(sample_requirement(rng, task), rng)
    question = sample_question(rng, scene)
    text = f"User: <image_placeholder>\n{question.text}\n\nAssistant:"
    found = PROCESSOR(text=[text], images=[render(scene)])["input_ids"][0].tolist()
    tokenizer = PROCESSOR.tokenizer
    assert found.count(tokenizer.image_token_id) == 36
    assert tokenizer.unk_token_id not in [*found, *tokenizer.convert_tokens_to_ids(list(ANSWERS))]
