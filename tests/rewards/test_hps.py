"""HPS: the official preprocessing and score, from both checkpoint layouts."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch

from rewards import load_expert
from rewards.hps import resize_longest
from t2ir1_ray.errors import UserError
from tests.rewards.tiny_experts import ROWS, random_images


@pytest.fixture(scope="module")
def expert(hps_folder):
    return load_expert("hps", str(hps_folder))


def test_batched_equals_single(expert):
    images = [*random_images(4), *random_images(3, 50, 30, seed=1)]
    batched = expert.score(images, ROWS)
    assert batched.status == ["ok"] * len(ROWS)
    single = [expert.score([image], [row]).scores[0] for image, row in zip(images, ROWS, strict=True)]
    assert batched.scores == pytest.approx(single, abs=1e-5)
    assert np.std(batched.scores) > 1e-3
    assert np.abs(batched.scores).max() <= 1


def test_score_is_the_cosine_without_logit_scale(expert, hps_folder):
    image, row = random_images(1, 32, 32)[0], ROWS[0]
    model = expert.model
    mean, std = (np.array(v, np.float32) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    pixels = torch.from_numpy((image / np.float32(255) - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        a = model.encode_image(pixels)[0]
        b = model.encode_text(open_clip.get_tokenizer(f"local-dir:{hps_folder}")([row["prompt"]]))[0]
    expected = torch.cosine_similarity(a, b, dim=0).item()
    assert expert.score([image], [row]).scores[0] == pytest.approx(expected, abs=1e-5)


def test_preprocessing_fits_the_longest_side_and_pads_with_zeros():
    padded = resize_longest(torch.full((64, 32, 3), 255, dtype=torch.uint8), 16)
    assert padded.shape == (1, 3, 16, 16)
    assert padded[..., 4:12].min() == pytest.approx(1, abs=1e-6)
    assert padded[..., :4].abs().max() == 0
    assert padded[..., 12:].abs().max() == 0
    image = torch.from_numpy(random_images(1, 16, 8)[0])
    unscaled = resize_longest(image, 16)  # the side already fits: pixels stay what they are
    assert torch.equal(unscaled[0, :, :, 4:12], image.permute(2, 0, 1) / 255)


def test_published_layout_is_a_pt_file_beside_an_architecture_name(hps_folder, tmp_path, expert):
    config = json.loads((hps_folder / "open_clip_config.json").read_text())["model_cfg"]
    del config["text_cfg"]["hf_tokenizer_name"]
    config["text_cfg"]["vocab_size"] = 49408
    (tmp_path / "tiny-hps.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-hps.json")
    torch.manual_seed(0)
    weights = open_clip.create_model("tiny-hps", pretrained=None).state_dict()
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "HPS_tiny.pt")
    by_file = load_expert("hps", str(tmp_path / "HPS_tiny.pt"), arch="tiny-hps")
    by_folder = load_expert("hps", str(tmp_path), arch="tiny-hps")
    images = random_images(len(ROWS))
    assert np.array_equal(by_file.score(images, ROWS).scores, by_folder.score(images, ROWS).scores)
    with pytest.raises(UserError, match="expert hps"):
        load_expert("hps", str(tmp_path / "HPS_tiny.pt"), arch="ViT-B-32")  # other shapes: strict loading refuses


def test_a_truncated_file_is_a_user_error(hps_folder, tmp_path):
    folder = shutil.copytree(hps_folder, tmp_path / "hps")
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="expert hps"):
        load_expert("hps", str(folder))


def test_bfloat16_is_close_to_float32(expert, hps_folder):
    images = random_images(len(ROWS))
    half = load_expert("hps", str(hps_folder), dtype="bfloat16").score(images, ROWS).scores
    assert half == pytest.approx(expert.score(images, ROWS).scores, abs=0.05)
