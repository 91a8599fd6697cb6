"""GIT: the official question protocol, batching with padding, and the weight formats it is published in."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, GitForCausalLM

from rewards import load_expert
from t2ir1_ray.errors import UserError
from tests.rewards.tiny_experts import ROWS, random_images

IMAGES = random_images(len(ROWS))


@pytest.fixture(scope="module")
def expert(git_folder):
    return load_expert("git", str(git_folder))


def official_score(folder, image, objects):
    """One question at a time and no padding, as the official code does it."""
    model, tokenizer = GitForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=image, return_tensors="pt").pixel_values
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    scores = []
    for name in objects:
        ids = [tokenizer.cls_token_id, *tokenizer(f"{name}?", add_special_tokens=False).input_ids]
        with torch.no_grad():
            p = model(pixel_values=pixels, input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
        scores.append((p[yes] / (p[yes] + p[no])).item())
    return np.mean(scores)


def test_scores_follow_the_official_protocol(expert, git_folder):
    result = expert.score(IMAGES, ROWS)
    assert result.status == ["ok"] * 5 + ["na", "na"]
    objects = [["red cat"], ["cat", "roll of paper towel", "dog"], ["red cat"], ["sports ball", "dog"]]
    expected = [official_score(git_folder, image, names) for image, names in zip(IMAGES[:4], objects, strict=True)]
    assert result.scores[:4] == pytest.approx(expected, abs=1e-5)
    assert result.scores[4] == 1.0  # nothing to ask
    assert np.std(expected) > 1e-3


def test_batched_equals_single(expert):
    single = [expert.score(IMAGES[i : i + 1], ROWS[i : i + 1]).scores[0] for i in range(5)]
    assert expert.score(IMAGES, ROWS).scores[:5] == pytest.approx(single, abs=1e-5)


@pytest.mark.parametrize("layout", ["sharded", "bin"])
def test_other_weight_files_give_the_same_scores(layout, expert, git_folder, tmp_path):
    folder = shutil.copytree(git_folder, tmp_path / layout)
    (folder / "model.safetensors").unlink()
    model = GitForCausalLM.from_pretrained(git_folder)
    if layout == "sharded":
        model.save_pretrained(folder, max_shard_size="50KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    else:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    scores = load_expert("git", str(folder)).score(IMAGES, ROWS).scores
    assert np.array_equal(scores, expert.score(IMAGES, ROWS).scores, equal_nan=True)


def test_a_missing_weight_is_an_error_and_not_random(git_folder, tmp_path):
    folder = shutil.copytree(git_folder, tmp_path / "git")
    (folder / "model.safetensors").unlink()
    state = dict(GitForCausalLM.from_pretrained(git_folder).state_dict())
    del state["git.visual_projection.visual_projection.0.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="missing keys.*visual_projection"):
        load_expert("git", str(folder))


def test_a_tokenizer_without_yes_is_refused(git_folder, tmp_path):
    folder = shutil.copytree(git_folder, tmp_path / "git")
    for file in folder.glob("tokenizer*.json"):
        file.write_text(file.read_text().replace('"yes"', '"oui"'))
    with pytest.raises(UserError, match="'yes' or 'no'"):
        load_expert("git", str(folder))
