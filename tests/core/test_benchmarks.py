"""What all benchmarks share: means, their standard errors, and the file of results."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from t2ir1_ray.benchmarks import BENCHMARKS, t2i_compbench
from t2ir1_ray.benchmarks.base import Benchmark, Figure, Item
from t2ir1_ray.benchmarks.results import Results, against, markdown, read_base, summarise
from t2ir1_ray.errors import UserError


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


def test_two_checkpoints_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    base = Results(tmp_path, {"cfg": 1.0, "seeds": [0, 1], "checkpoint": "base", "checkpoint_digest": "x"})
    for prompt, value in enumerate([0.8, 0.4, 0.0]):
        base.append(record(prompt, value))
    base.close()
    now = {"cfg": 1.0, "seeds": [0], "checkpoint": "new", "checkpoint_digest": "y"}
    wanted = [("a", 0, str(prompt)) for prompt in range(3)]
    name, records = read_base(tmp_path, now, wanted)
    assert (name, [r["prompt_id"] for r in records]) == ("base", ["0", "1", "2"])
    mine = [record(prompt, value) for prompt, value in enumerate([0.9, 0.5, 0.1])]
    found = against(Stub({}), ITEMS, mine, records, ["a"], ("new", "base"))["a"]["figures"]["all"]
    assert (found["new"]["mean"], found["base"]["mean"]) == (pytest.approx(0.5), pytest.approx(0.4))
    assert found["new"]["stderr"] > 0.2
    assert found["difference"]["mean"] == pytest.approx(0.1)
    assert found["difference"]["stderr"] == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(UserError, match=r"--against: .* with cfg=1.0, not 5.0"):
        read_base(tmp_path, now | {"cfg": 5.0}, wanted)
    with pytest.raises(UserError, match="lacks 1 prompts"):
        read_base(tmp_path, now, [*wanted, ("a", 1, "0")])
    for nowhere in (tmp_path / "none", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="--against: .* is no evaluation"):
            read_base(nowhere, now, wanted)


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


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000])
def test_a_folder_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError, match="is not of this program"):
        Results(tmp_path, {"cfg": 1.0})
    assert (tmp_path / "settings.json").read_text() == content


def test_every_benchmark_is_complete() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.images_per_prompt >= 1
    assert set(t2i_compbench.PARTS) == set(t2i_compbench.KINDS)
