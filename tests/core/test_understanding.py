"""Questions about images: POPE's files, its reading of answers, its figures with their errors, and the paired test."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from t2ir1_ray import evaluate
from t2ir1_ray.benchmarks import pope, understanding
from t2ir1_ray.benchmarks.base import Figure, sign_flip_p
from t2ir1_ray.benchmarks.pope import Asked, is_readable, read_questions, says_yes, summarise
from t2ir1_ray.benchmarks.ratios import Ratio, difference, ratio, swap_p
from t2ir1_ray.shapes.questions import KINDS
from t2ir1_ray.shapes.world import parse_plan, render
from tests.core.refusals import refused

WORDS = st.lists(st.sampled_from(["Yes", "there", "is", "a", "dog", "No", "no", "not", "NO", "nothing", "know"]))


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("Yes, there is a dog in the image.", True),
        ("No, there is no dog.", False),
        ("no", False),
        ("There is not a dog in the image.", False),
        ("There is a dog. No cat is there.", True),  # the first sentence alone counts
        ("No.", False),
        ("NO", True),  # as published: three spellings
        ("I do\nnot know", True),  # words are what blanks separate
        ("", True),
    ],
)
def test_answers_are_read_as_pope_reads_them(answer: str, yes: bool) -> None:
    assert says_yes(answer) == yes


@given(WORDS, st.text())
def test_only_words_of_the_first_sentence_count(words: list[str], more: str) -> None:
    said = says_yes(" ".join(words))
    assert said == (not {"No", "no", "not"} & set(words))
    assert says_yes(", ".join(words)) == said
    assert says_yes(f"{' '.join(words)}.{more}") == said
    assert not says_yes(" ".join([*words, "no"]))


@pytest.mark.parametrize("answer", ["yes", "YES!", "Well, yes", "No.", "There is not"])
def test_readable_is_what_has_yes_or_no(answer: str) -> None:
    assert is_readable(answer)
    assert not any(is_readable(letters) for letters in answer)
    assert not is_readable("A dog is in the image: eyes, NO tail")


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def row(number: int, image: str, thing: str, label: str) -> dict[str, Any]:
    """A line as it is published."""
    return {
        "question_id": number,
        "image": image,
        "text": f"Is there a {thing} in the image?",
        "label": label,
    }


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as POPE's output/coco: the kinds' files, and others beside them."""
    for kind, absent in zip(KINDS, ("zebra", "person", "fork"), strict=True):
        rows = [row(1, "a.jpg", "table", "yes"), row(2, "a.jpg", absent, "no"), row(3, "b.png", "cup", "yes")]
        write(tmp_path / f"coco_pope_{kind}.json", rows)
    write(tmp_path / "coco_ground_truth_objects.json", [{"image": "a.jpg", "objects": ["table"]}])
    images = tmp_path / "val2014"
    images.mkdir()
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(images / "a.jpg")
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(images / "b.png")
    return tmp_path


def test_published_files_are_read_and_kinds_take_turns(published: Path) -> None:
    found = read_questions(published, published / "val2014")
    assert [asked.prompt_id for asked in found[:4]] == ["random/1", "popular/1", "adversarial/1", "random/2"]
    assert len(found) == 9
    zebra = found[3]
    assert (zebra.text, zebra.answer, zebra.category) == ("Is there a zebra in the image?", False, "random")
    assert zebra.pixels().shape == (20, 30, 3)
    one = read_questions(published / "coco_pope_popular.json", published / "val2014")
    assert one == [asked for asked in found if asked.category == "popular"]
    other = (published / "coco_pope_popular.json").rename(published / "mine.jsonl")
    assert {asked.category for asked in read_questions(other, published)} == {"mine"}


def test_the_digest_is_of_what_images_show(published: Path) -> None:
    found = read_questions(published, published / "val2014")
    before = pope.check_images(found)
    assert before == pope.check_images(found[:9:2])  # the same two images
    Image.fromarray(np.full((8, 8, 3), 8, np.uint8)).save(published / "val2014" / "b.png")
    assert pope.check_images(found) != before


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([1], ["must be a JSON object"]),
        ({"label": "maybe"}, ["label='maybe'", "yes or no"]),
        ({"label": ["yes"]}, ["label=['yes']"]),
        ({"text": " "}, ["text=' '"]),
        ({"text": None}, ["text=None"]),
        ({"image": "../../secret.jpg"}, ["'../../secret.jpg'", "inside of"]),
        ({"image": "/etc/passwd"}, ["'/etc/passwd'", "inside of"]),
        ({"image": "a\0.jpg"}, ["image=", "NUL"]),
        ({"question_id": 1}, ["question_id=1", "once"]),
        ({"question_id": True}, ["question_id=True"]),
        ({"question_id": "1"}, ["question_id='1'", "once"]),
    ],
)
def test_bad_lines_are_named(bad: Any, words: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "coco_pope_random.json", [row(1, "a.jpg", "cup", "no")])
    line = row(2, "a.jpg", "cup", "no") | bad if isinstance(bad, dict) else bad
    file.write_text(file.read_text() + "\n" + json.dumps(line))
    refused(lambda: read_questions(file, tmp_path), f"{file}:3", *words)


def test_files_that_are_not_popes_are_refused(published: Path, tmp_path: Path) -> None:
    images = published / "val2014"
    refused(lambda: read_questions(images, images), "--prompts", "random, popular, adversarial")
    refused(lambda: read_questions(None, images), "--prompts: missing")
    refused(lambda: read_questions(published / "nothing", images), "does not exist")
    (published / "aokvqa_pope_random.json").touch()
    refused(lambda: read_questions(published, images), "aokvqa_pope_random.json", "coco_pope_random.json")
    refused(lambda: read_questions(published / "aokvqa_pope_random.json", images), "holds no questions")


def test_missing_and_broken_images_are_named(published: Path) -> None:
    images, file = published / "val2014", published / "coco_pope_random.json"
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:40])
    found = read_questions(file, images)
    refused(lambda: pope.check_images(found), f"{file}:3", "image='b.png'", "not a readable image file")
    (images / "a.jpg").unlink()
    refused(lambda: pope.check_images(found), f"{file}:1", "image='a.jpg'", "--images")


def questions(truth: str, images: str | None = None, category: str = "random") -> list[Asked]:
    """One for each letter, y or n; images: a letter for each, None: an image of its own."""
    names = images or [str(number) for number in range(len(truth))]
    return [
        Asked(f"{category}/{i}", category, name, "?", letter == "y", ())
        for i, (letter, name) in enumerate(zip(truth, names, strict=True))
    ]


def said(letters: str) -> list[str]:
    return [{"y": "yes", "n": "no"}[letter] for letter in letters]


def test_figures_of_a_case_computed_by_hand() -> None:
    """TP 3, FN 2, FP 1, TN 4."""
    figures = summarise(questions("yyyyynnnnn"), {"it": said("yyynnynnnn")})["figures"]
    assert list(figures) == ["accuracy", "precision", "recall", "F1", "yes ratio"]
    means = {name: cell["it"]["mean"] for name, cell in figures.items()}
    expected = {"accuracy": 0.7, "precision": 3 / 4, "recall": 3 / 5, "F1": 2 / 3, "yes ratio": 0.4}
    assert means == pytest.approx(expected)
    assert all(cell["it"]["prompts"] == 10 for cell in figures.values())
    errors = {name: cell["it"]["stderr"] for name, cell in figures.items()}
    assert errors["accuracy"] == pytest.approx(math.sqrt(0.7 * 0.3 / 9))
    assert errors["yes ratio"] == pytest.approx(math.sqrt(0.4 * 0.6 / 9))
    # Precision moves with 3 right (1/4 above it) and 1 wrong (3/4 below it) of 4; n / (n - 1) of all ten.
    assert errors["precision"] == pytest.approx(math.sqrt(10 / 9 * (3 / 4**2 + 9 / 4**2)) / 4)
    # F1 = 6 / 9: a true positive adds 2 - 2 * 2/3, a false positive or negative takes 2/3 away.
    assert errors["F1"] == pytest.approx(math.sqrt(10 / 9 * (3 * (2 / 3) ** 2 + 3 * (2 / 3) ** 2)) / 9)


def test_figures_of_categories_stand_beside_those_of_all() -> None:
    asked = questions("yn") + questions("ynnn", category="popular")
    figures = summarise(asked, {"it": said("ynyyyy")})["figures"]
    assert figures["accuracy"]["it"]["mean"] == 0.5
    assert figures["random: accuracy"]["it"]["mean"] == 1
    assert figures["popular: accuracy"]["it"]["mean"] == 0.25
    assert figures["popular: F1"]["it"] == pytest.approx(
        {"mean": 0.4, "stderr": figures["popular: F1"]["it"]["stderr"], "prompts": 4}
    )


def test_who_never_says_yes_has_no_precision() -> None:
    found = summarise(questions("yn"), {"it": said("nn"), "other": said("yn")})
    assert found["figures"]["precision"]["it"] is None
    assert found["figures"]["precision"]["difference"] is None
    assert found["figures"]["recall"]["it"]["mean"] == 0
    assert found["figures"]["recall"]["difference"]["mean"] == -1


def test_answers_without_yes_or_no_are_counted() -> None:
    found = summarise(questions("ynn"), {"it": ["perhaps", "", "No way"]})
    assert found["unreadable"] == {"it": 2}
    assert found["figures"]["yes ratio"]["it"]["mean"] == pytest.approx(2 / 3)


def test_asking_the_same_again_makes_nothing_surer() -> None:
    """The kinds share images and, in half of their questions, words: errors are those of one kind alone."""
    rng = np.random.default_rng(0)
    truth, answers = ("".join(rng.choice(["y", "n"], 40)) for _ in range(2))
    images = "".join(chr(ord("A") + number // 2) for number in range(40))
    once = summarise(questions(truth, images), {"it": said(answers)})["figures"]
    thrice = summarise(questions(truth * 3, images * 3), {"it": said(answers * 3)})["figures"]
    for name, cell in once.items():
        assert thrice[name]["it"]["mean"] == pytest.approx(cell["it"]["mean"])
        assert thrice[name]["it"]["stderr"] == pytest.approx(cell["it"]["stderr"])


def test_errors_are_those_of_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((300, 2)) < 0.5  # two questions about each image, answered with a bias of the image
    yes = rng.random((300, 2)) < np.where(truth, 0.8, 0.3) + rng.choice([-0.2, 0.2], (300, 1))
    units = np.repeat(np.arange(300), 2)
    for name, (counted, possible) in pope.counts(yes.ravel(), truth.ravel()).items():
        one = Ratio.over(units, counted, possible)
        drawn = rng.integers(0, 300, (4000, 300))
        again = one.counted[drawn].sum(1) / one.possible[drawn].sum(1)
        assert ratio(one) == pytest.approx((one.value, again.std()), rel=0.06), name


LETTERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=12)


@given(LETTERS)
def test_the_paired_test_of_accuracy_is_mcnemars_and_that_of_other_benchmarks(rows: list[tuple[bool, ...]]) -> None:
    truth, first, second = np.array(rows).T
    units = np.arange(len(rows))
    ones = [Ratio.over(units, *pope.counts(yes, truth)["accuracy"]) for yes in (first, second)]
    gained, lost = int(sum((first == truth) & (second != truth))), int(sum((first != truth) & (second == truth)))
    apart = gained + lost
    mcnemar = min(1.0, 2 * sum(math.comb(apart, k) for k in range(min(gained, lost) + 1)) / 2**apart)
    assert swap_p(*ones) == pytest.approx(mcnemar)
    changes = {str(i): float(a == t) - float(b == t) for i, (t, a, b) in enumerate(rows)}
    assert swap_p(*ones) == pytest.approx(sign_flip_p(Figure("", "", None), {}, changes), abs=0.02)
    assert difference(*ones)[0] == pytest.approx((gained - lost) / len(rows))


def test_the_paired_test_of_a_ratio_counted_by_hand() -> None:
    """F1 of 2/2 against 0/2 on two images: of the four exchanges two are as far apart."""
    first, second = Ratio(np.array([2.0, 2.0]), np.array([2.0, 2.0])), Ratio(np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    assert swap_p(first, second) == 0.5
    assert swap_p(first, first) == 1.0
    many = Ratio(np.full(40, 1.0), np.full(40, 1.0)), Ratio(np.full(40, 0.0), np.full(40, 1.0))
    assert swap_p(*many) == 1e-4  # of 10,000 drawn exchanges, the one that was found


@given(st.integers(0, 2**32 - 1))
def test_questions_about_shapes_are_balanced_and_true(seed: int) -> None:
    found = understanding.shape_questions(24, seed)
    assert Counter((asked.category, asked.answer) for asked in found) == {
        (kind, answer): 4 for kind in KINDS for answer in (True, False)
    }
    assert found == understanding.shape_questions(24, seed)
    for asked in found:
        assert np.array_equal(asked.pixels(), render(parse_plan(asked.image)))
        wanted = asked.text.removeprefix("Is there a ").removesuffix(" in the image?")
        assert asked.answer == (wanted in {item.name for item in parse_plan(asked.image)})


def test_the_questions_that_are_asked_are_always_the_same() -> None:
    found = understanding.read(None, None)
    assert len({asked.prompt_id for asked in found}) == len(found) == understanding.COUNT
    assert found[0].text == "Is there a purple triangle in the image?"
    assert len({asked.image for asked in found}) > 590


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plans", "both"], ["--plans", "leave it out"]),
        (["--seeds", "0"], ["--seeds"]),
        (["--num-images", "4"], ["--num-images"]),
        (["--cfg", "5"], ["--cfg"]),
        (["--temperature", "0"], ["--temperature"]),
        (["--expert", "vqa.path=x"], ["--expert"]),
        (["--judge-url", "http://x"], ["--judge-url"]),
        (["--judge-threads", "8"], ["--judge-threads"]),
        (["--prompts", "x"], ["--images: missing"]),
        (["--images", "x"], ["--prompts: missing"]),
        (["--prompts", "/nowhere", "--images", "/nowhere/else"], ["--images", "/nowhere/else", "no folder"]),
        (["--prompts", "/nowhere", "--images", "x" * 5000], ["--images", "no folder"]),
        (["--prompts", "/nowhere", "--images", "/tmp"], ["/nowhere", "does not exist"]),
        (["--limit", "0"], ["--limit", "at least 1"]),
        (["--checkpoint", "/nowhere"], ["/nowhere", "does not exist"]),
        (["policy.question_template=what"], ["policy.question_template=what", "{image}", "{question}"]),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(lambda: evaluate.main(["--benchmark", "understanding", "--out", str(out), *arguments]), *words)
    assert not out.exists()


def test_what_does_not_fit_the_checkpoint_is_refused(published: Path, tiny_janus: Path, tmp_path: Path) -> None:
    file = write(published / "long.json", [row(1, "a.jpg", "very " * 300 + "big cup", "no")])
    command = ["--benchmark", "understanding", "--prompts", str(file), "--images", str(published / "val2014")]
    command += ["--out", str(tmp_path / "out")]
    refused(lambda: evaluate.main(command), "--prompts", "tokens with its image", "256 positions", "shorten it")
    blind = ["--checkpoint", str(tiny_janus), "--config", "shapes", "policy.max_prompt_tokens=20"]
    refused(lambda: evaluate.main([*command, *blind]), "policy.path", "neither processor_config.json nor")


def test_images_are_for_this_benchmark_alone(tmp_path: Path) -> None:
    refused(lambda: evaluate.main(["--benchmark", "shapes", "--images", str(tmp_path)]), "--images", "understanding")
