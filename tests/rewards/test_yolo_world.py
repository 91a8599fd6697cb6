"""YOLO-World: its geometry, and its detections where ultralytics (optional, AGPL-3.0) is installed."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

import rewards.yolo_world
from rewards import NonFiniteScore, load_expert
from rewards.yolo_world import Frame, letterbox
from t2ir1_ray.errors import UserError
from t2ir1_ray.shapes.prompts import sample_rows
from t2ir1_ray.shapes.recipes.expert_training import crowded_scene
from t2ir1_ray.shapes.world import render


def test_letterbox_keeps_the_aspect_and_fills_with_grey():
    pixels, frame = letterbox(np.full((10, 20, 3), 255, np.uint8), 40)
    assert pixels.shape == (3, 40, 40)
    assert (pixels[:, 10:30] == 1).all()
    assert (pixels[:, :10] == 114 / 255).all()
    assert (pixels[:, 30:] == 114 / 255).all()
    assert frame.fractions((20, 20, 40, 20)) == (0.5, 0.5, 1.0, 1.0)  # the whole image
    assert frame.fractions((10, 15, 20, 10)) == (0.25, 0.25, 0.5, 0.5)  # its upper left quarter


def test_letterbox_resizes_as_pil_does():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) / 255
    assert letterbox(image, 16)[0].permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-6)
    assert Frame(1, 1000, 16).height == 1


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(rewards.yolo_world, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="ultralytics is not installed"):
        load_expert("yolo_world", str(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("ultralytics")
    from t2ir1_ray.shapes.recipes.train_yolo_world import train

    folder = tmp_path_factory.mktemp("yolo_world")
    train(folder, seed=0, steps=30)
    return folder


ROWS = sample_rows(16, seed=1, held_out=True)
IMAGES = np.stack([render(crowded_scene(random.Random(i), (2, 3, 4))) for i in range(16)])
NOUNS = [row["nouns"] for row in ROWS]


def test_batched_equals_single_whatever_the_number_of_nouns(folder):
    expert = load_expert("yolo_world", str(folder), box_threshold=0.01)
    assert len(set(map(len, NOUNS))) > 1
    batched = expert.detect(IMAGES, NOUNS)
    assert sum(map(len, batched)) > 50
    for image, nouns, found in zip(IMAGES, NOUNS, batched, strict=True):
        (alone,) = expert.detect([image], [nouns])
        assert [d.noun for d in alone] == [d.noun for d in found]
        assert [d.score for d in alone] == pytest.approx([d.score for d in found], abs=1e-5)
        ours, theirs = (torch.tensor([(nouns.index(d.noun), d.score, *d.box) for d in each]) for each in (alone, found))
        apart = (ours[:, None] - theirs).abs().amax(-1)  # of two scores that are nearly equal either may come first
        nearest = apart.min(1)
        assert sorted(nearest.indices.tolist()) == list(range(len(found)))
        assert nearest.values.max() < 1e-5


def test_an_ultralytics_file_gives_the_same_scores_as_the_folder(folder, tmp_path):
    expert = load_expert("yolo_world", str(folder), box_threshold=0.01)
    torch.save({"model": expert.net, "train_args": {}}, tmp_path / "tiny.pt")
    options = {"text_path": str(folder / "text"), "image_size": 24, "box_threshold": 0.01}
    by_file = load_expert("yolo_world", str(tmp_path / "tiny.pt"), **options)
    assert np.array_equal(by_file.score(IMAGES, ROWS).scores, expert.score(IMAGES, ROWS).scores)
    with pytest.raises(UserError, match="text_path"):
        load_expert("yolo_world", str(tmp_path / "tiny.pt"))


def test_a_file_with_foreign_classes_is_not_unpickled(folder, tmp_path):
    torch.save({"model": Frame(1, 1, 1)}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="expert yolo_world"):
        load_expert("yolo_world", str(tmp_path / "evil.pt"), text_path=str(folder / "text"))


def test_broken_weights_raise_instead_of_finding_nothing(folder):
    expert = load_expert("yolo_world", str(folder))
    expert.net.model[0].conv.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteScore, match="yolo_world"):
        expert.score(IMAGES[:1], ROWS[:1])
