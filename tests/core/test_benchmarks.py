"""Benchmark protocols against scores computed by hand, on small made-up sets in the published layouts."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Mask2FormerConfig, SwinConfig
from transformers.models.mask2former import modeling_mask2former

from t2ir1_ray.benchmarks import BENCHMARKS, geneval, t2i_compbench, wise
from t2ir1_ray.benchmarks.base import Benchmark, Figure, Found, Item, View, estimate
from t2ir1_ray.benchmarks.geneval import GenEval, correct, relative_position, select
from t2ir1_ray.benchmarks.mask2former import Mask2Former, decode
from t2ir1_ray.benchmarks.results import Results, markdown, summarise
from t2ir1_ray.benchmarks.t2i_compbench import (
    CompBench,
    Relation,
    attribute_score,
    counts_of,
    numeracy_score,
    phrases,
    questions,
    relation_of,
    spatial_score,
    three_in_one,
    without_duplicates,
)
from t2ir1_ray.benchmarks.wise import Wise, parse_verdict, wiscore
from t2ir1_ray.errors import UserError

A, B = (0, 100, 100, 200), (300, 100, 400, 200)


# --- T2I-CompBench --------------------------------------------------------------------------------------------------


def test_attribute_score_is_the_product_over_noun_phrases() -> None:
    assert attribute_score([0.9, 0.8]) == 0.72
    assert attribute_score([0.3 / 0.4]) == 0.75
    assert attribute_score([]) == 1.0
    assert attribute_score([0.12344, 0.5]) == 0.0617  # 0.1234 * 0.5, both rounded


@pytest.mark.parametrize(
    ("word", "first", "second", "scores", "expected"),
    [
        ("on the left of", A, B, (0.9, 0.8), 0.925),
        ("on the right of", A, B, (0.9, 0.9), 0.0),  # 0.45 is below the cut
        ("on the left of", (0, 0, 200, 100), (100, 0, 300, 100), (0.9, 0.9), 0.60),  # IoU 1/3
        ("near", (0, 0, 100, 100), (250, 300, 350, 400), (0.9, 0.9), 0.70),
        ("near", (0, 0, 100, 100), (250, 300, 350, 400), (0.5, 0.5), 0.50),
        ("next to", A, B, (0.6, 0.6), 0.80),  # one axis alone is enough
        ("on the top of", (0, 0, 100, 100), (0, 200, 100, 300), (1.0, 1.0), 1.0),
        ("on the bottom of", (0, 0, 100, 100), (0, 200, 100, 300), (1.0, 1.0), 0.5),
        ("on top of", (0, 0, 100, 100), (0, 200, 100, 300), (1.0, 1.0), 0.5),  # officially without a rule
    ],
)
def test_spatial_score(word: str, first: Any, second: Any, scores: tuple[float, float], expected: float) -> None:
    found = [Found("cat", scores[0], first), Found("dog", scores[1], second), Found("cat", 0.1, second)]
    assert spatial_score(Relation("cat", word, "dog"), found) == pytest.approx(expected)


def test_one_object_alone_scores_nothing() -> None:
    assert spatial_score(Relation("cat", "near", "dog"), [Found("cat", 0.99, A)]) == 0.0


def test_near_is_measured_in_the_official_frame() -> None:
    found = [Found("cat", 1.0, (0, 0, 10, 10)), Found("dog", 1.0, (30, 40, 40, 50))]
    assert spatial_score(Relation("cat", "near", "dog"), found) == 1.0
    assert spatial_score(Relation("cat", "near", "dog"), found, scale=10) == pytest.approx(0.5 + 0.5 * 150 / 400)


def test_numeracy_score() -> None:
    found = [
        Found(name, 0.9, (x, 0, x + 9, 9)) for name, x in [("cup", 0), ("cup", 20), ("candle", 40), ("candle", 60)]
    ]
    assert numeracy_score({"cup": 2, "candle": 1}, found) == 0.75
    assert numeracy_score({"cup": 2, "spoon": 1}, found) == 0.5
    assert without_duplicates([(0, 0, 100, 100), (1, 1, 99, 99), (50, 0, 150, 100)]) == [
        (0, 0, 100, 100),
        (50, 0, 150, 100),
    ]


def test_three_in_one() -> None:
    parts = {"vqa": 0.8, "spatial": 0.6, "clip": 0.3}
    found = [three_in_one(kind, parts) for kind in ("spatial", "action", "spatialaction")]
    assert found == pytest.approx([0.7, 0.55, 0.5667], abs=1e-4)


def test_words_of_templated_prompts() -> None:
    assert phrases("a green bench and a blue bowl") == ["a green bench", "a blue bowl"]
    assert phrases("a rectangular piece of toast, and a round bagel") == [
        "a rectangular piece",
        "toast",
        "a round bagel",
    ]
    assert questions(["The Red Cup.", "top", "a (big) dog!"]) == ["the red cup", "a big dog"]
    assert len(questions(["a cat"] * 12)) == 8
    assert relation_of("a girl on the top of a frog") == Relation("girl", "on the top of", "frog")
    assert relation_of("a mouse on side of a key") == Relation("mouse", "on side of", "key")
    assert relation_of("two boys") is None
    counted = "three mice, three women, one sheep, four boxes and a bird were used for a recipe"
    assert counts_of(counted) == {"mouse": 3, "woman": 3, "sheep": 1, "box": 4, "bird": 1}
    assert counts_of("two knives, five strawberries, six buses and two horses") == {
        "knife": 2,
        "strawberry": 5,
        "bus": 6,
        "horse": 2,
    }


def write_compbench(folder: Path) -> Path:
    (folder / "color_val.txt").write_bytes(
        b"a red cup and a blue dog\r\na green bench\n"
    )  # mixed line ends, as published
    (folder / "spatial_val.txt").write_text("a cat on the left of a dog\n")
    (folder / "complex_val.txt").write_text("The red hat was on top of the rack.\nThe phone was on the charger.\n")
    (folder / "complex_val_spatial.txt").write_text("The red hat was on top of the rack.\n")
    (folder / "complex_val_action.txt").write_text("The phone was on the charger\n")
    return folder


def test_compbench_layout(tmp_path: Path) -> None:
    bench = CompBench({})
    items = bench.read(write_compbench(tmp_path))
    assert [item.prompt_id for item in items] == ["color/0", "color/1", "spatial/0", "complex/0", "complex/1"]
    assert [item.fields["kind"] for item in items if item.category == "complex"] == ["spatial", "action"]
    assert bench.image_path(items[1], 3, 10) == "color/samples/a green bench_000013.png"
    single = bench.read(tmp_path / "spatial_val.txt")
    assert [item.category for item in single] == ["spatial"]
    assert bench.judges(single) == {"detector"}
    with pytest.raises(UserError, match="_val.txt"):
        bench.read(tmp_path / "complex_val_spatial.txt")


def test_compbench_asks_and_scores_by_category(tmp_path: Path) -> None:
    bench = CompBench({})
    color, _, spatial, *_ = bench.read(write_compbench(tmp_path))
    asked = bench.observe(color, "images", lambda *call: call)
    assert asked == {"answers": ("vqa", "ask", "images", ["a red cup", "a blue dog"])}
    asked = bench.observe(spatial, "images", lambda *call: call)
    assert asked == {"found": ("detector", "detect", "images", ["cat", "dog"])}
    pixels = np.zeros((384, 384, 3), np.uint8)
    assert bench.score(color, View("", pixels, {"answers": [0.9, 0.8]})) == {"score": 0.72}
    seen = {"found": [Found("cat", 0.9, A), Found("dog", 0.8, B)]}
    assert bench.score(spatial, View("", pixels, seen))["score"] == pytest.approx(0.925)


# --- GenEval --------------------------------------------------------------------------------------------------------


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


# --- WISE -----------------------------------------------------------------------------------------------------------


def write_wise(file: Path, ids: list[int]) -> Path:
    rows = [{"Prompt": f"p{i}", "Explanation": "e", "Category": "c", "Subcategory": "s", "prompt_id": i} for i in ids]
    file.write_text(json.dumps(rows))
    return file


def test_wiscore() -> None:
    assert wiscore(2, 1, 0) == pytest.approx(0.80)
    assert parse_verdict("Consistency: 2\nRealism: 1\nAesthetic Quality: 0") == {
        "consistency": 2,
        "realism": 1,
        "aesthetic": 0,
    }
    assert parse_verdict("**Consistency:** 2\n**Realism**: 1\n**Aesthetic Quality:** **0**") is not None
    assert parse_verdict("Consistency: 3\nRealism: 1\nAesthetic Quality: 0") is None
    assert parse_verdict("Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0") is None
    assert parse_verdict("I cannot see an image.") is None


def test_wise_layout_and_overall(tmp_path: Path) -> None:
    write_wise(tmp_path / "b.json", [401, 567, 568, 700])
    write_wise(tmp_path / "a.json", [1, 400, 701, 801, 1000])
    bench = Wise({})
    items = bench.read(tmp_path)
    assert [item.category for item in items] == [
        *("culture", "culture", "time", "time", "space", "space", "biology", "physics", "chemistry")
    ]
    assert bench.image_path(items[0], 0, 1) == "1.png"
    found = estimate(
        bench.figures(items)[0],
        {domain: domain for domain in wise.DOMAINS},
        dict(zip(wise.DOMAINS, [[0.30], [0.37], [0.49], [0.36], [0.42], [0.26]], strict=True)),
    )
    assert found is not None
    assert found.mean == pytest.approx(0.351, abs=5e-4)  # the plain mean is 0.367
    with pytest.raises(UserError, match="twice"):
        bench.read(write_wise(tmp_path / "c.json", [5, 5]))
    with pytest.raises(UserError, match="entry 2"):
        bench.read(write_wise(tmp_path / "d.json", [5, 1001]))


def test_the_judge_sees_prompt_and_explanation() -> None:
    item = Item("1", "a {brace}", "culture", 1, {"Explanation": "why"})
    judge, method, _, system, text, readable = Wise({}).observe(item, "images", lambda *call: call)["verdict"]
    assert (judge, method) == ("judge", "ask")
    assert "PROMPT: a {brace}" in text
    assert "EXPLANATION: why" in text
    assert system
    assert not readable("no")


# --- means, standard errors, the results file -----------------------------------------------------------------------


class Stub(Benchmark):
    """Reports figures of results that are there already; it reads, judges and stores nothing."""

    name = "stub"
    read = score = image_path = None

    def figures(self, items: Any) -> list[Figure]:
        return [Figure("all", "m", None), Figure("weighted", "m", {"x": 0.75, "y": 0.25})]


ITEMS = [Item(str(i), f"p{i}", "xxy"[i], i) for i in range(3)]


def record(prompt: int, *values: float | None, mode: str = "a", seed: int = 0) -> dict[str, Any]:
    images = [{"scores": {"m": value}} for value in values]
    return {"mode": mode, "seed": seed, "prompt_id": str(prompt), "images": images}


def test_standard_errors_are_over_prompts() -> None:
    """Images and seeds of a prompt are averaged first: prompts 0, 1, 2 have means .5, 1, 0."""
    records = [record(0, 1.0, 0.0), record(0, 0.0, 1.0, seed=1), record(1, 1.0, 1.0), record(2, 0.0)]
    figures = summarise(Stub({}), ITEMS, records, ["a"])["figures"]
    assert figures["all"]["a"]["mean"] == pytest.approx(0.5)
    assert figures["all"]["a"]["stderr"] == pytest.approx(0.5 / math.sqrt(3))
    assert figures["weighted"]["a"]["mean"] == pytest.approx(0.75 * 0.75)
    assert figures["weighted"]["a"]["stderr"] is None  # a single prompt of category y has no spread
    assert figures["weighted"]["a"]["prompts"] == 3


def test_the_difference_is_paired_by_prompt() -> None:
    records = [record(i, v) for i, v in enumerate([0.9, 0.5, 0.1])]
    records += [record(i, v, mode="b") for i, v in enumerate([0.8, 0.4, 0.0])]
    found = summarise(Stub({}), ITEMS, records, ["a", "b"])["figures"]["all"]
    assert found["a"]["stderr"] > 0.2
    assert found["difference"]["mean"] == pytest.approx(0.1)
    assert found["difference"]["stderr"] == pytest.approx(0.0, abs=1e-9)


def test_an_unreadable_verdict_withholds_the_overall() -> None:
    summary = summarise(Stub({}), ITEMS, [record(0, 1.0), record(1, None), record(2, 1.0)], ["a"])
    assert summary["unreadable"] == {"a": 1}
    assert summary["figures"]["weighted"]["a"] is None
    row = markdown("policy", summary).splitlines()[-1]
    assert row == "| policy | a | - | - |"


def test_results_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    results = Results(tmp_path, {"cfg": 1.0, "seeds": [0]})
    results.append(record(0, 1.0))
    results.close()
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes() + b'{"mode": "a", "se')
    again = Results(tmp_path, {"cfg": 1.0, "seeds": [0, 1]})  # more seeds: more to do
    assert list(again.records) == [("a", 0, "0")]
    again.append(record(1, 1.0))
    again.close()
    assert [json.loads(line)["prompt_id"] for line in file.read_text().splitlines()] == ["0", "1"]
    with pytest.raises(UserError, match=r"cfg=1.0, not 5.0"):
        Results(tmp_path, {"cfg": 5.0, "seeds": [0]})


def test_every_benchmark_is_complete() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.images_per_prompt >= 1
    assert set(t2i_compbench.PARTS) == set(t2i_compbench.KINDS)
