"""Names of metrics: one rule, which every line of a real run keeps."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ir1_ray.errors import RunError
from t2ir1_ray.journal.metric_names import PATTERN, MetricNames
from t2ir1_ray.records.names import LONGEST, part

REAL = Path(__file__).parent / "data" / "metrics.jsonl"
"""The first lines of a run of the shapes world, with an evaluation."""
CONTRACT = {
    *("step", "policy_version", "loss", "kl", "reward/mean", "reward/hps", "reward/zero_std_groups", "time/step_s"),
    *("rollout/images_per_s", "mismatch/semantic_kl", "staleness", "heldout/accuracy"),
}


def test_a_real_run_keeps_the_rule_and_the_contract() -> None:
    names, seen = MetricNames(), set()
    for line in REAL.read_text().splitlines():
        names.check(json.loads(line))
        seen |= json.loads(line).keys()
    assert seen >= CONTRACT
    assert len(seen) > 90


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([["loss", "loss/image"]], ["loss/image", "folder"]),
        ([["time/step_s/rollout"], ["time/step_s"]], ["time/step_s/rollout", "folder"]),
        ([["a/b/c/d"], ["a/b"]], ["a/b/c/d"]),
        ([["expert/correlation/a~b"]], ["a~b", "letters"]),
        ([["reward/a b"]], ["letters"]),
        ([["reward//x"]], ["letters"]),
        ([["/x"]], ["letters"]),
        ([["x/"]], ["letters"]),
        ([["a/../b"]], ["letters"]),
        ([["."]], ["letters"]),
        ([["récompense"]], ["letters"]),
        ([["x" * 251]], ["250"]),
        ([["x\n"]], ["letters"]),
        ([[""]], ["letters"]),
    ],
)
def test_a_name_that_a_store_cannot_hold_is_refused(lines: list[list[str]], words: list[str]) -> None:
    names = MetricNames()
    with pytest.raises(RunError) as error:
        [names.check(line) for line in lines]
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_neighbours_are_no_folders_of_each_other() -> None:
    names = MetricNames()
    names.check(["kl", "kl_x/a", "kl.b", "klx", "time/step_s", "time/step_s2/x"])
    names.check(["kl", "time/step"])


@given(st.text(st.characters(codec=None), max_size=80), st.text(st.characters(codec=None), max_size=80))
def test_parts_from_data_are_valid_and_different(one: str, other: str) -> None:
    assert PATTERN.fullmatch(f"heldout/task/{part(one)}")
    assert len(part(one)) <= LONGEST
    assert (part(one) == part(other)) == (one == other)


def test_ordinary_words_stay_as_they_are() -> None:
    for word in ("color", "non-spatial", "grounding_dino", "3d"):
        assert part(word) == word
    assert part("a/b") == "a.2f.b"
