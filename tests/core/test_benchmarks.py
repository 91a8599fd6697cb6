"""What all benchmarks share: means, their standard errors, and the file of results."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2ir1_ray.benchmarks import BENCHMARKS, t2i_compbench
from t2ir1_ray.benchmarks.base import Benchmark, Figure, Item, sign_flip_p
from t2ir1_ray.benchmarks.results import Results, against, beside, markdown, read_base, summarise
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
    assert found["difference"]["p"] == 0.25
    assert "p" not in found["a"]


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


def test_four_numbers_stand_side_by_side() -> None:
    """A base and a policy, each with both modes: one table, and one row each."""
    values = {"base": (0.2, 0.4), "policy": (0.6, 0.8)}
    summaries = {
        name: summarise(Stub({}), ITEMS, [record(0, a), record(0, b, mode="b")], ["a", "b"])
        for name, (a, b) in values.items()
    }
    found = beside(summaries)["figures"]["all"]
    assert {name: cell["mean"] for name, cell in found.items()} == {
        "base: a": 0.2,
        "base: b": 0.4,
        "policy: a": 0.6,
        "policy: b": 0.8,
    }
    rows = markdown(summaries).splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| base", "a", "20.0"],
        ["| base", "b", "40.0"],
        ["| policy", "a", "60.0"],
        ["| policy", "b", "80.0"],
    ]


def test_flipped_signs_by_hand() -> None:
    """Three differences of 1: of 8 choices of signs two are as far from 0. With 1, 1, -1 all are but none is nearer."""
    plain = Figure("all", "m", None)
    assert sign_flip_p(plain, {}, {"0": 1.0, "1": 1.0, "2": 1.0}) == 2 / 8
    assert sign_flip_p(plain, {}, {"0": 1.0, "1": 1.0, "2": -1.0}) == 1.0
    assert sign_flip_p(plain, {}, {"0": 0.0}) == 1.0
    # Two strata: 0.75 * (1 + 1) / 2 of x and 0.25 * d of y, which only decides if it is larger.
    shares, of = Figure("weighted", "m", {"x": 0.75, "y": 0.25}), {"0": "x", "1": "x", "2": "y", "3": "z"}
    assert sign_flip_p(shares, of, {"0": 1.0, "1": 1.0, "2": 0.0}) == 4 / 8
    assert sign_flip_p(shares, of, {"0": 0.0, "1": 0.0, "2": 9.0}) == 1.0
    assert sign_flip_p(shares, of, {"0": 1.0, "1": 1.0, "2": 1.0, "3": 5.0}) == 2 / 8  # z has no share


def test_p_is_about_what_the_normal_distribution_says() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1.0, 400)
    z = differences.mean() / (differences.std(ddof=1) / 20)
    p = sign_flip_p(Figure("all", "m", None), {}, dict(zip(map(str, range(400)), differences, strict=True)))
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.02)


def test_an_unreadable_verdict_withholds_the_overall() -> None:
    summary = summarise(Stub({}), ITEMS, [record(0, 1.0), record(1, None), record(2, 1.0)], ["a"])
    assert summary["unreadable"] == {"a": 1}
    assert summary["figures"]["weighted"]["a"] is None
    row = markdown({"policy": summary}).splitlines()[-1]
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
