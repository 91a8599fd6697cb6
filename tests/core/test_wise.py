"""WISE's protocol against scores computed by hand, on small made-up sets in the published layout."""

import json
from pathlib import Path

import pytest

from t2ir1_ray.benchmarks import wise
from t2ir1_ray.benchmarks.base import Item, estimate
from t2ir1_ray.benchmarks.wise import Wise, parse_verdict, wiscore
from t2ir1_ray.errors import UserError


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
