"""GenEval's protocol against scores computed by hand, and its detector against transformers' own."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Mask2FormerConfig, SwinConfig
from transformers.models.mask2former import modeling_mask2former

from t2ir1_ray.benchmarks import geneval
from t2ir1_ray.benchmarks.base import Found, estimate
from t2ir1_ray.benchmarks.geneval import GenEval, correct, relative_position, select
from t2ir1_ray.benchmarks.mask2former import Mask2Former, decode
from t2ir1_ray.errors import UserError

A, B = (0, 100, 100, 200), (300, 100, 400, 200)


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        (A, B, {"left of"}),
        (B, A, {"right of"}),
        ((0, 0, 100, 100), (100, 100, 200, 200), {"left of", "above"}),
        ((0, 0, 100, 100), (60, 100, 160, 200), {"above"}),
        ((0, 0, 100, 100), (15, 0, 115, 100), set()),
    ],
)
def test_relative_position(box: Any, other: Any, expected: set[str]) -> None:
    assert relative_position(box, other) == expected


def clocks(*scores: float) -> list[Found]:
    return [Found("clock", score, (50.0 * i, 0, 50.0 * i + 40, 40)) for i, score in enumerate(scores)]


def test_counting_is_exact_above_its_threshold() -> None:
    metadata = {"include": [{"class": "clock", "count": 3}], "exclude": [{"class": "clock", "count": 4}]}
    three = [0.95, 0.93, 0.91]
    assert correct(metadata, select(clocks(*three, 0.60), geneval.COUNTING_THRESHOLD), {})
    assert not correct(metadata, select(clocks(*three, 0.92), geneval.COUNTING_THRESHOLD), {})
    assert not correct(metadata, select(clocks(*three[:2], 0.9), geneval.COUNTING_THRESHOLD), {})
    assert len(select(clocks(*[0.5] * 20), geneval.THRESHOLD)["clock"]) == geneval.MAX_OBJECTS


def test_colors_and_positions() -> None:
    objects = {"cup": [Found("cup", 0.9, A)], "couch": [Found("couch", 0.8, B)]}
    below = {"class": "couch", "count": 1, "position": ["right of", 0]}
    assert correct({"include": [{"class": "cup", "count": 1}, below]}, objects, {})
    assert not correct({"include": [{"class": "cup", "count": 1}, below | {"position": ["below", 0]}]}, objects, {})
    assert not correct({"include": [{"class": "dog", "count": 1}, below]}, objects, {})  # nothing to be right of
    red = {"include": [{"class": "cup", "count": 1, "color": "red"}]}
    assert correct(red, objects, {"cup": ["red"]})
    assert not correct(red, objects, {"cup": ["blue"]})


def test_color_crop_greys_what_is_outside_the_mask() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = True
    crop = np.asarray(geneval.color_crop(pixels, Found("cup", 1.0, (1, 1, 3, 3), mask)))
    assert crop.shape == (2, 2, 3)
    assert crop[0, 0].tolist() == [0, 0, 0]
    assert crop[1, 1].tolist() == list(geneval.GREY)
    assert geneval.color_crop(pixels, Found("cup", 1.0, (3.6, 3.6, 9, 9))).size == (6, 6)


def test_geneval_layout_and_overall(tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    rows = [
        {"tag": tag, "include": [{"class": "cup", "count": 1}], "prompt": f"a photo of {tag}"} for tag in geneval.TAGS
    ]
    rows[3]["include"][0]["color"] = "red"
    file.write_text("\n".join(map(json.dumps, rows)))
    bench = GenEval(GenEval.needs)
    items = bench.read(file)
    assert bench.image_path(items[3], 2, 4) == "00003/samples/0002.png"
    assert json.loads(bench.sidecars(items[3])["00003/metadata.jsonl"]) == rows[3]
    assert bench.judges(items[:3]) == {"detector"}
    assert bench.judges(items) == {"detector", "clip"}
    asked = bench.observe(items[3], "images", lambda *call: call)
    assert asked["found"] == ("detector", "detect", "images", ["cup"])
    assert asked["colors"] == ("clip", "colors", "images", asked["found"], {"cup": 1}, geneval.THRESHOLD)

    overall = bench.figures(items)[0]
    shares = [(66, 80), (38, 99), (36, 80), (57, 94), (22, 100), (13, 100)]  # a published result, by tag
    category_of, values = {}, {}
    for tag, (right, count) in zip(geneval.TAGS, shares, strict=True):
        for row in range(count):
            category_of[f"{tag}{row}"], values[f"{tag}{row}"] = tag, [float(row < right)]
    found = estimate(overall, category_of, values)
    assert found is not None
    assert found.mean == pytest.approx(0.43587, abs=1e-5)
    file.write_text('{"tag": "colour", "include": [], "prompt": "x"}\n')
    with pytest.raises(UserError, match="entry 1"):
        bench.read(file)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 3},
        {"prompt": " "},
        {"tag": "colour"},
        {"include": []},
        {"include": [{"class": "cup", "count": 1.5}]},
        {"include": [{"class": "cup", "count": 1, "color": "beige"}]},
        {"include": [{"class": "cup", "count": 1, "position": ["left of", 0]}]},  # of itself
        {"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 7]}]},
        {"include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["behind", 0]}]},
        {"exclude": [{"class": "cup", "count": "two"}]},
    ],
)
def test_metadata_that_cannot_be_scored_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    row = {"tag": "counting", "prompt": "a cup", "include": [{"class": "cup", "count": 1}]}
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | change))
    with pytest.raises(UserError, match="entry 2 is not in the layout"):
        GenEval(GenEval.needs).read(file)
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match="entry 1"):
        GenEval(GenEval.needs).read(file)


def test_masks_become_instances_as_in_mmdet() -> None:
    class_logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # two classes and "nothing"
    mask_logits = torch.full((2, 4, 4), -5.0)
    mask_logits[0, 1:3, 0:2] = 2.0
    (label, score, box, mask), *_ = decode(class_logits, mask_logits, (4, 4))
    probability = math.exp(4) / (math.exp(4) + 2)
    assert (label, box) == (0, (0.0, 1.0, 2.0, 3.0))
    assert score == pytest.approx(probability / (1 + math.exp(-2)), rel=1e-5)
    assert mask.sum() == 4
    assert {one[0] for one in decode(class_logits, mask_logits, (4, 4))} == {0, 1}  # the empty mask is left out


class NoLoss(torch.nn.Module):
    def __init__(self, config: Mask2FormerConfig, **_: Any):
        super().__init__()
        self.register_buffer("empty_weight", torch.ones(config.num_labels + 1))
        self.num_labels, self.eos_coef = config.num_labels, config.no_object_weight


def test_mask2former_is_transformers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_mask2former, "Mask2FormerLoss", NoLoss)  # the real one needs scipy
    backbone = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_indices=[1, 2, 3, 4])
    sizes = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim"), 32)
    layers = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16}
    names = {0: "cup", 1: "mouse", 2: "remote"}
    torch.manual_seed(0)
    config = Mask2FormerConfig(backbone_config=backbone, num_queries=5, id2label=names, **sizes, **layers)
    model = modeling_mask2former.Mask2FormerForUniversalSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    ours = Mask2Former(str(tmp_path), "cpu", "float32", batch_size=1, short_side=64)
    image = np.random.default_rng(0).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    pixels = ours.preprocess(image)
    assert pixels.shape == (1, 3, 64, 80)
    with torch.inference_mode():
        expected, (classified, masks) = model(pixel_values=pixels), ours.model(pixels)
    torch.testing.assert_close(classified, expected.class_queries_logits)
    torch.testing.assert_close(masks, expected.masks_queries_logits)
    (found,) = ours.detect([image], ["cup", "computer mouse"])
    assert {one.label for one in found} <= {"cup", "computer mouse"}
    assert found
    assert found[0].mask.shape == (24, 30)
    with pytest.raises(ValueError, match="'dragon'"):
        ours.detect([image], ["dragon"])
