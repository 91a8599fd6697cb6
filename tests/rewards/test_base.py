"""States of a sample, and the errors of load_expert."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from rewards import EXPERTS, NonFiniteScore, load_expert
from rewards.base import read_image
from rewards.batched import BatchedExpert
from t2ir1_ray.errors import UserError
from tests.rewards.tiny_experts import ROWS, random_images


class MeanRed(BatchedExpert):
    name = "red"

    def applies_to(self, row):
        return row["prompt"] != "skip"

    def prepare(self, image):
        return image[..., 0]

    def score_batch(self, prepared, rows):
        return np.array([red.mean() for red in prepared])


class Broken(MeanRed):
    name = "hps"

    def __init__(self, values):
        super().__init__(batch_size=8)
        self.values = values

    def score_batch(self, prepared, rows):
        return np.array(self.values)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_bad_images_fail_alone():
    good = np.full((4, 4, 3), 7, np.uint8)
    images = [good, png(good), b"junk", png(good)[:40], good[..., :2], good.astype(np.float32), None, good]
    rows = [{"prompt": "p"}] * 7 + [{"prompt": "skip"}]
    result = MeanRed(batch_size=2).score(images, rows)
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
        Broken([0.0, bad]).score(np.zeros((2, 4, 4, 3), np.uint8), rows)


def test_images_and_rows_must_match_in_number():
    with pytest.raises(ValueError, match="1 images for 2 prompts"):
        MeanRed(batch_size=8).score(np.zeros((1, 4, 4, 3), np.uint8), [{}, {}])


class Meeting(MeanRed):
    """Its model waits until the images of the next batch, or of another call, are being prepared."""

    def __init__(self, images):
        super().__init__(batch_size=1)
        self.left, self.prepared = images, threading.Semaphore(0)
        self.at_model = 0

    def prepare(self, image):
        self.prepared.release()
        return super().prepare(image)

    def score_batch(self, prepared, rows):
        self.at_model += 1
        assert self.at_model == 1, "one batch at a time"
        assert self.prepared.acquire(timeout=10)
        self.left -= 1
        if self.left:
            assert self.prepared.acquire(timeout=10), "nobody prepared anything meanwhile"
            self.prepared.release()
        self.at_model -= 1
        return super().score_batch(prepared, rows)


def test_the_next_batch_is_prepared_while_the_model_works():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    assert Meeting(3).score(images, [{"prompt": "p"}] * 3).scores.tolist() == [0, 1, 2]


def test_two_calls_share_the_model_and_prepare_beside_each_other():
    images = np.arange(2, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    expert = Meeting(2)
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(expert.score, image[None], [{"prompt": "p"}]) for image in images]
        assert [one.result(30).scores.item() for one in found] == [0, 1]


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
