"""Questions about images: the answer is the truth, near misses are near, and the policy's tokenizer knows the words."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor, JanusForConditionalGeneration

from t2ir1_ray.config import SHIPPED
from t2ir1_ray.shapes.prompts import TASK_TYPES, sample_requirement, sample_scene
from t2ir1_ray.shapes.questions import ANSWERS, KINDS, Question, sample_question
from t2ir1_ray.shapes.recipes.corrupt import random_scene
from t2ir1_ray.shapes.recipes.looking import answering_quality, looks, question_ids
from t2ir1_ray.shapes.recipes.tokenizer import policy_processor, policy_tokenizer
from t2ir1_ray.shapes.world import COLORS, SHAPES, TEXTURES, Scene, parse_plan, render

SEEDS = st.integers(0, 2**32 - 1)
POLICY = str(SHIPPED) + "/policy"


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
        assert " ".join(asked) in [item.name for item in scene]
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
def test_a_conversation_has_the_ids_that_transformers_own_processor_makes(seed: int, task: str) -> None:
    rng = random.Random(seed)
    scene = sample_scene(sample_requirement(rng, task), rng)
    question = sample_question(rng, scene)
    processor, tokenizer = policy_processor(side=24, tokens=36), policy_tokenizer()
    text = f"User: <image_placeholder>\n{question.text}\n\nAssistant:"
    found = processor(text=[text], images=[render(scene)])["input_ids"][0].tolist()
    assert question_ids(tokenizer, question.text, 36) == [tokenizer.bos_token_id, *found]
    assert tokenizer.unk_token_id not in found
    assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(list(ANSWERS))


def test_lessons_of_looking_are_about_their_scene() -> None:
    tokenizer = policy_tokenizer()
    for look in looks(tokenizer, random.Random(0), 50, image_tokens=36, turns=3):
        assert look.conversation.count(tokenizer.image_token_id) == 36
        begin = 0
        for at in look.answers_at:
            question = tokenizer.decode(look.conversation[begin:at], skip_special_tokens=True)
            asked = question.split("there a ")[1].split(" in the")[0]
            said, end = tokenizer.convert_ids_to_tokens(look.conversation[at : at + 2])
            assert said == ("yes" if asked in [item.name for item in look.scene] else "no")
            assert end == tokenizer.eos_token
            begin = at + 2
        assert begin == len(look.conversation)


@pytest.mark.slow
def test_the_shipped_policy_answers_through_plain_transformers() -> None:
    model = JanusForConditionalGeneration.from_pretrained(POLICY, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(POLICY)
    found = answering_quality(model, processor.tokenizer)
    assert found["answers"] >= 0.8
    assert 0.35 <= found["yes"] <= 0.65
    scene: Scene = parse_plan("red ring upper left, blue circle lower right.")
    said = []
    for asked in ("red ring", "purple square"):
        text = (
            f"{processor.tokenizer.bos_token}User: <image_placeholder>\nIs there a {asked} in the image?\n\nAssistant:"
        )
        inputs = processor(text=[text], images=[render(scene)], add_special_tokens=False)
        ids = model.generate(**inputs, generation_mode="text", do_sample=False, max_new_tokens=4)
        said.append(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert said == ["yes", "no"]
