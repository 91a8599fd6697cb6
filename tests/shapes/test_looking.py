"""The lessons of looking: conversations that tell the truth, a tower that sees, and the shipped policy's answers."""

import random

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import JanusForConditionalGeneration

from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.janus.policy import PromptFormat
from t2ir1_ray.shapes.recipes import train_vq
from t2ir1_ray.shapes.recipes.looking import (
    answer_logits,
    answering_quality,
    looking_loss,
    looks,
    open_eyes,
    words_of_patches,
)
from t2ir1_ray.shapes.recipes.tokenizer import policy_tokenizer
from t2ir1_ray.shapes.recipes.train_policy import build_model
from t2ir1_ray.shapes.world import COLUMNS, ROWS, parse_plan, render

FORM = PromptFormat(policy_tokenizer(), PolicyConfig(path=""))


def seeing_model(seed: int = 0, steps: int = 0) -> JanusForConditionalGeneration:
    torch.manual_seed(seed)
    model = build_model(FORM.tokenizer, train_vq.train_vq(hidden=128, seed=0, steps=1))
    if steps:
        open_eyes(model, FORM, random.Random(seed), steps)
    return model


def test_conversations_show_the_image_once_and_tell_the_truth() -> None:
    yes, no, image = FORM.tokenizer.convert_tokens_to_ids(["yes", "no", "<image_placeholder>"])
    said = []
    for look in looks(FORM, random.Random(0), 100):
        assert look.conversation.count(image) == 36
        assert FORM.tokenizer.unk_token_id not in look.conversation[1:]
        assert len(look.answers) == 4
        for begin, end in look.answers:
            asked = FORM.tokenizer.decode(look.conversation[:begin]).rpartition("Is there a ")[2]
            name = asked.partition(" in the image")[0]
            answer = look.conversation[begin:end]
            assert answer[-1] == FORM.eos_id
            said.append(answer[0])
            if answer[0] == yes:
                words = FORM.tokenizer.decode(answer).split()
                place = ROWS.index(words[2]), COLUMNS.index(words[3])
                assert place in [item.cell for item in look.scene if item.name == name]
            else:
                assert answer[0] == no
                assert name not in [item.name for item in look.scene]
    assert said.count(yes) / len(said) == pytest.approx(0.5, abs=0.1)


def test_a_patch_is_the_sum_of_its_objects_words() -> None:
    embeddings = torch.eye(len(FORM.tokenizer))
    patches = words_of_patches(FORM, parse_plan("dotted red ring upper center, blue square lower left."), embeddings)
    named = [set(FORM.tokenizer.convert_ids_to_tokens(patch.nonzero().flatten().tolist())) for patch in patches]
    rows = [named[start : start + 6] for start in range(0, 36, 6)]
    ring, square, nothing = {"dotted", "red", "ring"}, {"blue", "square"}, set()
    assert rows[:2] == [[nothing] * 2 + [ring] * 2 + [nothing] * 2] * 2
    assert rows[2:4] == [[nothing] * 6] * 2
    assert rows[4:] == [[square] * 2 + [nothing] * 4] * 2
    assert set(patches.unique().tolist()) == {0, 1}


def test_the_loss_is_that_of_plain_transformers_answer_by_answer() -> None:
    """Each conversation alone, its image given as pixels."""
    model = seeing_model().eval()
    batch = looks(FORM, random.Random(1), 3, turns=2)
    losses = []
    with torch.no_grad():
        for look in batch:
            ids = torch.tensor([look.conversation])
            logits = model(input_ids=ids, pixel_values=train_vq.to_tensor([render(look.scene)])).logits[0]
            for begin, end in look.answers:
                losses.append(cross_entropy(logits[begin - 1 : end - 1], ids[0, begin:end], reduction="sum").item())
        assert looking_loss(model, batch).item() == pytest.approx(sum(losses) / 6, rel=1e-4)
        assert answer_logits(model, batch)[0].shape[:2] == (3, max(len(look.conversation) for look in batch))


def test_open_eyes_teaches_the_tower_and_leaves_the_language_model_alone() -> None:
    before, again, after = (seeing_model(steps=steps) for steps in (0, 3, 3))
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        taught = name.startswith(("model.vision_model.encoder.layers", "model.aligner"))
        assert not taught or not torch.equal(tensor, before.state_dict()[name]) or tensor.ndim < 2, name
        if "language_model" in name or "generation" in name or "lm_head" in name:
            assert torch.equal(tensor, before.state_dict()[name]), name


def test_the_shipped_policy_sees(base: JanusForConditionalGeneration, shipped_form: PromptFormat) -> None:
    found = answering_quality(base, shipped_form)
    assert found["answers"] >= 0.8
    assert 0.4 <= found["yes"] <= 0.7, "half in truth"
