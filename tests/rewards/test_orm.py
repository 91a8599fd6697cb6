"""ORM: one forward pass equals a reference built from the parts, from both checkpoint layouts."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rewards import load_expert
from rewards.orm import QWEN_1_5, pad_and_resize, split_template
from t2ir1_ray.errors import UserError
from tests.rewards.tiny_experts import ROWS, random_images, write_llava_next_folder

IMAGES = [*random_images(4), *random_images(3, 30, 50, seed=1)]


@pytest.fixture(scope="module")
def expert(orm_folder):
    return load_expert("orm", str(orm_folder))


def test_batched_equals_single(expert):
    batched = expert.score(IMAGES, ROWS)
    assert batched.status == ["ok"] * len(ROWS)
    single = [expert.score([image], [row]).scores[0] for image, row in zip(IMAGES, ROWS, strict=True)]
    assert batched.scores == pytest.approx(single, abs=1e-5)
    assert np.std(batched.scores) > 1e-2


def test_score_equals_the_assembled_parts(expert):
    """Vision features without the final norm, the projector, one newline vector, then the language model."""
    model, tokenizer = expert.model.model, expert.tokenizer
    before, after = QWEN_1_5.split("{image}")
    encode = lambda text: torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)  # noqa: E731
    embed = model.language_model.get_input_embeddings()
    expected = []
    with torch.no_grad():
        for image, row in zip(IMAGES, ROWS, strict=True):
            tower = model.vision_tower
            hidden = tower.encoder(inputs_embeds=tower.embeddings(pad_and_resize(image, 24)[None])).last_hidden_state
            picture = torch.cat([model.multi_modal_projector(hidden)[0], model.image_newline[None]])
            text = embed(encode(after.replace("{prompt}", row["prompt"])))
            sequence = torch.cat([embed(encode(before)), picture, text])[None]
            logits = expert.model.lm_head(model.language_model(inputs_embeds=sequence).last_hidden_state)[0, -1]
            yes, no = logits[tokenizer.convert_tokens_to_ids(["yes", "no"])]
            expected.append(torch.sigmoid(yes - no).item())
    assert expert.score(IMAGES, ROWS).scores == pytest.approx(expected, abs=1e-5)


def test_llava_next_layout_gives_the_same_scores(expert, orm_folder, tmp_path):
    folder = write_llava_next_folder(tmp_path, same_as=orm_folder)
    assert "model.mm_projector.0.weight" in load_file(folder / "model.safetensors")
    scores = load_expert("orm", str(folder)).score(IMAGES, ROWS).scores
    assert scores == pytest.approx(expert.score(IMAGES, ROWS).scores, abs=1e-6)


def test_an_unknown_vision_tower_is_a_user_error(orm_folder, tmp_path):
    folder = write_llava_next_folder(tmp_path, same_as=orm_folder)
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="vision tower 'tiny' is not known"):
        load_expert("orm", str(folder))


def test_temperature_sharpens(expert, orm_folder):
    cold = load_expert("orm", str(orm_folder), temperature=0.3).score(IMAGES, ROWS).scores.astype(float)
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    assert logit(cold) * 0.3 == pytest.approx(logit(expert.score(IMAGES, ROWS).scores.astype(float)), abs=1e-3)
    with pytest.raises(UserError, match="temperature"):
        load_expert("orm", str(orm_folder), temperature=0)


def test_the_template_comes_from_the_checkpoint_unless_given(expert, orm_folder, tmp_path):
    folder = shutil.copytree(orm_folder, tmp_path / "orm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "question_template": "{image} {prompt}?"}))
    own = load_expert("orm", str(folder))
    assert (own.before_image, own.after_image) == ("", " {prompt}?")
    assert not np.allclose(own.score(IMAGES, ROWS).scores, expert.score(IMAGES, ROWS).scores, atol=1e-3)
    given = load_expert("orm", str(folder), template=QWEN_1_5)
    assert np.array_equal(given.score(IMAGES, ROWS).scores, expert.score(IMAGES, ROWS).scores)


@pytest.mark.parametrize("template", ["{prompt}", "{image}", "{prompt} {image}", "{image} {image} {prompt}"])
def test_a_template_needs_its_two_slots(template):
    with pytest.raises(UserError, match="template"):
        split_template(template)


def test_preprocessing_pads_with_grey():
    pixels = pad_and_resize(np.full((10, 20, 3), 255, np.uint8), 20)
    assert pixels[:, 5:15].min() == 1.0
    assert pixels[:, :5].unique().tolist() == pytest.approx([127 / 127.5 - 1])
    image = random_images(1, 32, 32)[0]
    resized = np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC))
    assert torch.allclose(pad_and_resize(image, 24), torch.tensor(resized).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)
