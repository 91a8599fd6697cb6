"""States of a sample, and the errors of load_expert."""

import io

import numpy as np
import pytest
from PIL import Image

from rewards import EXPERTS, NonFiniteScore, load_expert
from rewards.base import read_image, score_in_batches
from t2ir1_ray.errors import UserError
from tests.rewards.tiny_experts import ROWS, random_images


def mean_red(images, rows):
    return np.array([image[..., 0].mean() for image in images])


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_bad_images_fail_alone():
    good = np.full((4, 4, 3), 7, np.uint8)
    images = [good, png(good), b"junk", png(good)[:40], good[..., :2], good.astype(np.float32), None, good]
    rows = [{"prompt": "p"}] * 7 + [{"prompt": "skip"}]
    result = score_in_batches("test", images, rows, lambda row: row["prompt"] != "skip", mean_red, batch_size=2)
    assert result.status == ["ok", "ok", "failed", "failed", "failed", "failed", "failed", "na"]
    assert result.scores[:2].tolist() == [7, 7]
    assert np.isnan(result.scores[2:]).all()
    assert result.scores.dtype == np.float32
    assert all(error and "\n" not in error for error in result.errors[2:7])
    assert result.errors[0] is None
    assert result.errors[7] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_stops_the_step(bad):
    rows = [{"prompt_id": "4", "prompt": "first"}, {"prompt_id": "5", "prompt": "second"}]
    with pytest.raises(NonFiniteScore, match=r"^hps: score of sample 1 is not finite \(prompt 5, 'second'\)$"):
        score_in_batches("hps", np.zeros((2, 4, 4, 3), np.uint8), rows, lambda row: True, lambda i, r: [0.0, bad], 8)


def test_images_and_rows_must_match_in_number():
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        score_in_batches("x", np.zeros((1, 4, 4, 3), np.uint8), [{}, {}], lambda row: True, mean_red, 8)


def test_grey_image_files_become_rgb():
    assert read_image(png(np.full((5, 6), 9, np.uint8))).shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("clip", {}, "expert kind: 'clip' is unknown"),
        ("hps", {"dtype": "int8"}, "expert dtype: 'int8'"),
        ("git", {}, "expert path: /nowhere does not exist"),
        ("hps", {}, "expert path: /nowhere does not exist"),
    ],
)
def test_load_expert_explains_in_one_line(kind, options, message):
    with pytest.raises(UserError, match=message) as error:
        load_expert(kind, "/nowhere", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", sorted(set(EXPERTS) - {"yolo_world"}))
def test_an_empty_folder_is_no_checkpoint(kind, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        load_expert(kind, str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", sorted(set(EXPERTS) - {"yolo_world"}))
def test_a_hub_id_that_cannot_be_had_is_one_line(kind):
    with pytest.raises(UserError, match="nobody/nothing") as error:
        load_expert(kind, "nobody/nothing")
    assert "\n" not in str(error.value)


def test_an_unknown_option_is_named(git_folder):
    with pytest.raises(UserError, match="tempreature"):
        load_expert("git", str(git_folder), tempreature=1)


@pytest.mark.parametrize("kind", ["hps", "git", "blip", "orm", "grounding_dino"])
@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_read_only_views_of_arrow_memory_are_scored(kind, request):
    images = random_images(2)
    images.setflags(write=False)
    expert = load_expert(kind, str(request.getfixturevalue(f"{kind}_folder")))
    assert expert.name == kind
    result = expert.score(images, ROWS[:2])
    low, high = expert.value_range
    assert result.status == ["ok", "ok"]
    assert (low <= result.scores).all()
    assert (result.scores <= high).all()
