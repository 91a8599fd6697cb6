"""The hacking index by hand: gains in units of the first spread, on the side on which an expert stood."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from t2ir1_ray.journal.hacking import FIRST, HackingIndex, gained

REAL = Path(__file__).parent / "data" / "metrics.jsonl"
STDS = {"reward": 0.1, "other": 0.3, "monitor": 0.5}


def lines(
    steps: int, scores: Mapping[str, Callable[[int], float]], **more: Callable[[int], float | None]
) -> list[dict[str, float]]:
    """Lines of metrics.jsonl: experts' mean scores and the spreads of STDS; more: keys with __ for /."""
    found = []
    for step in range(steps + 1):
        line = {"step": step}
        for name, score in scores.items() if step else ():
            line |= {f"expert/{name}/mean": score(step), f"expert/{name}/group_std": STDS[name]}
        line |= {k.replace("__", "/"): v for k, value in more.items() if (v := value(step)) is not None}
        found.append(line)
    return found


def index(weights: Mapping[str, float], found: list[dict[str, float]]) -> list[dict[str, float]]:
    """What every line is given."""
    counted = HackingIndex(weights)
    return [counted.add(line) for line in found]


def after(step: int, low: float, high: float) -> Callable[[int], float]:
    return lambda now: low if now <= step else high


def test_gains_are_put_together_by_weight() -> None:
    changes = {"a": 1.0, "b": 3.0, "penalty": -2.0, "m": 0.5, "n": 1.5}
    weights = {"a": 1.0, "b": 2.0, "penalty": -1.0, "m": 0.0, "n": 0.0}
    assert gained(changes, weights) == ((1 + 6 + 2) / 4, 1.0)
    assert gained({"a": 1.0}, weights) == (1.0, None)
    assert gained({"m": 1.0}, weights) == (None, 1.0)


def test_each_gain_is_in_units_of_its_own_first_spread() -> None:
    """The rewards jump by 0.2 and 0.3, that is by two spreads and one; the monitor by 0.25, half of its own."""
    scores = {"reward": after(FIRST, 0.4, 0.6), "other": after(FIRST, 1.0, 1.3), "monitor": after(FIRST, 2.0, 2.25)}
    found = index({"reward": 1.0, "other": 1.0, "monitor": 0.0}, lines(3 * FIRST, scores))
    assert found[:FIRST] == [{}] * FIRST
    assert found[FIRST]["hacking/index"] == 0
    half = found[FIRST + FIRST // 2]  # a mean over the last FIRST steps has gone half of the way
    assert half == pytest.approx(
        {"hacking/index": 0.5, "hacking/trained": 0.75, "hacking/watched": 0.25, "hacking/stderr": 0.0}
    )
    assert found[-1]["hacking/trained"] == pytest.approx(1.5)
    assert found[-1]["hacking/index"] == pytest.approx(1.0)


def test_the_verifier_counts_from_its_first_answer_and_until_its_next_one() -> None:
    """0.5 to 0.75 is half of the spread of right and wrong. The reward gains 1, and more after the evaluation."""
    scores = {"reward": lambda step: 0.4 if step <= 10 else 0.5 if step <= 30 else 0.9}
    accuracy = {0: 0.5, 30: 0.75}
    found = index({"reward": 1.0}, lines(45, scores, heldout__accuracy=accuracy.get))
    assert found[:30] == [{}] * 30
    gains = {"hacking/trained": 1.0, "hacking/watched": 0.5, "hacking/heldout": 0.5}
    assert found[30] == pytest.approx({"hacking/index": 0.5, "hacking/stderr": 0.0, **gains})
    assert found[45]["hacking/index"] == pytest.approx(0.5)  # what the verifier would say now is not known
    assert "hacking/heldout" not in found[45]


def test_a_verifier_that_is_always_or_never_right_measures_nothing() -> None:
    scores = {"reward": after(10, 0.4, 0.5)}
    accuracy = {0: 0.0, 30: 0.75}
    assert index({"reward": 1.0}, lines(45, scores, heldout__accuracy=accuracy.get)) == [{}] * 46


def test_monitors_and_the_verifier_are_averaged() -> None:
    scores = {"reward": after(10, 0.4, 0.5), "monitor": lambda _: 1.0}
    accuracy = {0: 0.5, 30: 0.75}
    found = index({"reward": 1.0, "monitor": 0.0}, lines(30, scores, heldout__accuracy=accuracy.get))
    assert found[29]["hacking/index"] == pytest.approx(1.0)
    assert found[30]["hacking/index"] == pytest.approx(0.75)
    assert found[30]["hacking/watched"] == pytest.approx(0.25)


def test_without_somebody_who_watches_there_is_no_index() -> None:
    assert index({"reward": 1.0, "other": 1.0}, lines(25, {"reward": after(9, 0, 1), "other": after(9, 0, 1)})) == (
        [{}] * 26
    )


def test_a_change_counts_on_the_side_on_which_the_expert_stood() -> None:
    """Two experts take turns of 20 steps. Each rises by its spread in the middle of its turn in the reward and stands
    still while it watches: two gains of a spread on the one side, none on the other."""
    turn = 20

    def first_counts(step: int) -> bool:
        return (step - 1) // turn % 2 == 0

    def rises(*middles: int) -> Callable[[int], float]:
        return lambda step: sum(step > middle for middle in middles)

    scores = {
        "reward": lambda step: 0.1 * rises(10, 50)(step),
        "other": lambda step: 0.3 * rises(30, 70)(step),
    }
    weights = {
        "expert__reward__weight": lambda step: float(first_counts(step)),
        "expert__other__weight": lambda step: float(not first_counts(step)),
    }
    found = index({"reward": 1.0, "other": 1.0}, lines(80, scores, **weights))
    assert found[-1]["hacking/trained"] == pytest.approx(4.0, abs=0.2)
    assert found[-1]["hacking/watched"] == pytest.approx(0.0, abs=0.2)
    reversed_roles = {key: lambda step, own=value: 1.0 - own(step) for key, value in weights.items()}
    found = index({"reward": 1.0, "other": 1.0}, lines(80, scores, **reversed_roles))
    assert found[-1]["hacking/index"] == pytest.approx(-4.0, abs=0.2)


def test_noise_of_the_first_steps_is_what_the_index_may_be_off() -> None:
    """Means over FIRST steps of unchanged scores differ by what the standard error says."""
    rng = np.random.default_rng(0)
    off = []
    for _ in range(200):
        noise = {name: rng.normal(0, STDS[name], 1 + 2 * FIRST) for name in ("reward", "monitor")}
        found = index({"reward": 1.0, "monitor": 0.0}, lines(2 * FIRST, {n: v.__getitem__ for n, v in noise.items()}))
        off.append(found[-1]["hacking/index"] / found[-1]["hacking/stderr"])
    assert 0.9 < np.std(off) < 1.3  # of a t distribution with nine degrees of freedom: 1.13


def test_an_expert_that_scores_nothing_for_a_while_keeps_its_level() -> None:
    scores = {"reward": lambda _: 0.4, "monitor": after(25, 1.0, 2.0)}
    found = lines(50, scores)
    for line in found[15:40]:
        del line["expert/monitor/mean"], line["expert/monitor/group_std"]
    assert index({"reward": 1.0, "monitor": 0.0}, found)[-1]["hacking/index"] == pytest.approx(-2.0)


def test_lines_of_a_real_run_are_taken(tmp_path: Path) -> None:
    """They hold figures that are null, and histograms."""
    counted = HackingIndex({"hps": 1.0, "git": 0.0})
    real = json.loads(REAL.read_text().splitlines()[1])
    for step in range(1, 15):
        added = counted.add({**real, "step": step})
    assert added["hacking/index"] == pytest.approx(0.0)
