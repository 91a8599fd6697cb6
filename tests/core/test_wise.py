"""WISE's protocol against scores computed by hand, on small made-up sets in the published layout."""

import json
from pathlib import Path

import pytest

from t2ir1_ray.benchmarks import wise
from t2ir1_ray.benchmarks.base import Item, View, estimate
from t2ir1_ray.benchmarks.wise import VERIFIED, Wise, parse_verdict, wiscore
from t2ir1_ray.errors import UserError
from tests.core.refusals import refused


def write_wise(file: Path, ids: list[int]) -> Path:
    rows = [{"Prompt": f"p{i}", "Explanation": "e", "Category": "c", "Subcategory": "s", "prompt_id": i} for i in ids]
    file.write_text(json.dumps(rows))
    return file


def test_wiscore() -> None:
    assert wiscore({"consistency": 2, "realism": 1, "aesthetic": 0}) == pytest.approx(0.80)
    assert wiscore({"score": 1}, VERIFIED) == 1
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


PLACES = {  # Category as published -> the last prompt_id of its domain in the legacy, the first in the verified edition
    "Cultural knowledge": (1, 1),
    "time": (567, 401),
    "Space": (700, 521),
    "Biology": (800, 641),
    "Physical Knowledge": (900, 761),
    "Chemistry": (1000, 881),
}


def write_edition(file: Path, edition: int, categories: list[str], text: str = "p") -> Path:
    ids = {category: PLACES[category][edition] for category in categories}
    rows = [
        {"Prompt": f"{text}{i}", "Explanation": "e", "Category": category, "Subcategory": "s", "prompt_id": i}
        for category, i in ids.items()
    ]
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows))
    return file


@pytest.mark.parametrize("edition", ["legacy", "verified"])
def test_the_files_tell_which_edition_they_are(edition: str, tmp_path: Path) -> None:
    bench = Wise({})
    items = bench.read(write_edition(tmp_path / "all.json", edition == "verified", list(PLACES)))
    assert [item.category for item in items] == list(wise.DOMAINS)
    assert bench.notes() == {"WISE edition": edition}
    shares = bench.figures(items)[0].shares
    published = {"legacy": (0.4, 0.167, 0.133, 0.1, 0.1, 0.1), "verified": (0.4, 0.12, 0.12, 0.12, 0.12, 0.12)}
    assert shares == dict(zip(wise.DOMAINS, published[edition], strict=True))
    for category in ("Biology", "Space"):  # one domain is enough
        bench.read(write_edition(tmp_path / "one.json", edition == "verified", [category]))
        assert bench.edition.name == edition


def test_the_verified_protocol_is_one_binary_score(tmp_path: Path) -> None:
    bench = Wise({})
    items = bench.read(write_edition(tmp_path / "all.json", 1, list(PLACES)))
    assert bench.judge_options["max_tokens"] == 500
    assert bench.judge_options["extra_body"] == {"chat_template_kwargs": {"enable_thinking": False}}
    assert "Score:" in bench.template
    for answer, score in {"Score: 1": 1, "**Score:** 0": 0, "Score: 2": None, "Consistency: 2": None}.items():
        assert bench.score(items[0], View("", None, {"verdict": answer}))["wiscore"] == score
    found = estimate(
        bench.figures(items)[0],
        {domain: domain for domain in wise.DOMAINS},
        dict(zip(wise.DOMAINS, [[0.37], [0.35], [0.2833], [0.2833], [0.40], [0.2333]], strict=True)),
    )
    assert found is not None
    assert found.mean == pytest.approx(0.3340, abs=5e-5)


def test_published_folders_are_read_whole_and_once(tmp_path: Path) -> None:
    science = ["Biology", "Physical Knowledge", "Chemistry"]
    legacy, verified = tmp_path / "data", tmp_path / "data_verified"
    write_edition(legacy / "cultural_common_sense.json", 0, ["Cultural knowledge"])
    write_edition(legacy / "cultural_common_sense_rewrite.json", 0, ["Cultural knowledge"], "rewritten ")
    write_edition(legacy / "natural_science.json", 0, science)
    write_edition(legacy / "natural_science_rewrite.json", 0, science, "rewritten ")
    bench = Wise({})
    assert [item.prompt for item in bench.read(legacy)] == ["p1", "p800", "p900", "p1000"]
    assert bench.read(legacy / "natural_science_rewrite.json")[0].prompt == "rewritten 800"
    assert "rewritten" in bench.notes()["WISE edition"]
    write_edition(verified / "cultural_common_sense_verified.json", 1, ["Cultural knowledge"])
    write_edition(verified / "natural_science_verified.json", 1, science)
    write_edition(verified / "merge.json", 1, ["Cultural knowledge", *science])
    assert [item.prompt_id for item in bench.read(verified)] == ["1", "641", "761", "881"]
    bench.read(verified / "cultural_common_sense_verified.json")  # its numbers are the same in both editions
    assert bench.notes() == {"WISE edition": "verified (by its file's name)"}
    bench.read(legacy / "cultural_common_sense.json")
    assert "legacy (assumed" in bench.notes()["WISE edition"]


def test_editions_are_never_mixed(tmp_path: Path) -> None:
    write_edition(tmp_path / "a.json", 0, ["Space"])
    write_edition(tmp_path / "b.json", 1, ["Chemistry"])
    refused(lambda: Wise({}).read(tmp_path), "mixes the two editions")
    write_edition(tmp_path / "x" / "culture.json", 0, ["Cultural knowledge"])
    write_edition(tmp_path / "x" / "time_verified.json", 1, ["time"])
    refused(lambda: Wise({}).read(tmp_path / "x"), "mixes the two editions")
    rows = [{"Prompt": "p", "Explanation": "e", "Category": "Chemistry", "prompt_id": 30}]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    refused(lambda: Wise({}).read(tmp_path / "c.json"), "c.json: entry 1", "'Chemistry' is not that of prompt_id 30")


THOUGHTS = {
    "a change of mind": ("Score: 1? No, the moon is full.\nScore: 0", 0),
    "the task, repeated": ("I must answer Score: 0 or Score: 1.\nThe plant bends.\n\nScore: 1", 1),
    "tags": ("<think>Score: 1, or Score: 0?</think>\nScore: 1", 1),
    "an end of tags": ("Perhaps Score: 0.</think>Score: 1", 1),
    "cut off": ("<think>At first sight Score: 1, but", None),
    "a last word that is none": ("Score: 1\nScore: 0.5", None),
}


@pytest.mark.parametrize(("answer", "score"), THOUGHTS.values(), ids=THOUGHTS)
def test_the_last_verdict_counts(answer: str, score: float | None) -> None:
    assert parse_verdict(answer, VERIFIED) == (None if score is None else {"score": score})
    draft = "Consistency: 0, Realism: 0, Aesthetic Quality: 0"
    marks = parse_verdict(f"{draft} at first.\nConsistency: 2\nRealism: 1\nAesthetic Quality: 2")
    assert marks == {"consistency": 2, "realism": 1, "aesthetic": 2}
