"""The ideal that runs with many actors are measured against, by hand; and a tiny run that is measured against it."""

import statistics
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.scale_ideal import Durations, Queue, Run, Seconds, Step, simulate

PLAIN = {"publish": 1.0, "load": 0.5, "rollout": 10.0, "expert-a": 2.0, "expert-b": 0.5, "learner": 3.0}


def seconds(means: Mapping[str, float] = PLAIN) -> Seconds:
    return Durations(means).of


def one_block(*scorers: str, ahead: int = 0, steps: int = 1, **counts: int) -> Run:
    """One actor and one block of two prompts in each step."""
    return Run(steps, ahead, 1, 1, {kind: counts.get(kind[-1], 1) for kind in scorers}, lambda _: [["p", "q"]])


def test_a_step_is_the_sum_of_its_phases() -> None:
    """Published by 1, loaded by 1.5, drawn by 11.5; two groups one after another by 15.5; 18.5; 19.5; 20."""
    assert simulate(one_block("expert-a", "expert-b"), seconds()) == [Step(10, 4, 3, 1, 0.5, 20)]
    assert simulate(one_block("expert-a", a=2), seconds()) == [Step(10, 2, 3, 1, 0.5, 18)]
    assert simulate(one_block(), seconds()) == [Step(10, 0, 3, 1, 0.5, 16)]


def test_synchronous_steps_follow_each_other() -> None:
    assert [step.end for step in simulate(one_block("expert-a", steps=3), seconds())] == [20, 38.5, 57]


def test_a_step_ahead_is_collected_while_the_learner_works() -> None:
    """Step 1 is drawn at 11.5 and scored at 15.5, step 2 at 21.5 and 25.5; the version of step 1, published at 19.5, is
    loaded at 22, and step 3 drawn at 32 and scored at 36."""
    found = simulate(one_block("expert-a", ahead=1, steps=3), seconds())
    assert [step.end for step in found] == [19.5, 29.5, 40]
    slow = simulate(one_block("expert-a", ahead=1, steps=3), seconds(PLAIN | {"learner": 30.0}))
    assert [step.end for step in slow] == [46.5, 77.5, 108.5]
    assert simulate(one_block(ahead=4, steps=1), seconds())[0].end == 15.5
    crowded = simulate(one_block("expert-a", ahead=1, steps=2), seconds(PLAIN | {"expert-a": 8.0}))
    assert [step.end for step in crowded] == [31.5, 47.5], "step 2 waits for the scores of step 1"


def test_an_actor_holds_two_blocks_at_most() -> None:
    """Of 5, 1, 1, 1, 1 seconds on two actors: the third stands behind the first, the fifth behind the fourth."""
    lengths = {"a": 5.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0}
    scored = []

    def each(kind: str, *which: object) -> float:
        if kind == "expert":
            scored.append(which[1])
        return lengths[str(which[1])] if kind == "rollout" else 0.0

    run = Run(1, 0, 2, 1, {"expert": 1}, lambda _: [[name] for name in lengths])
    assert simulate(run, each)[0].rollout == 6
    assert scored == ["b", "d", "e", "a", "c"]


def test_the_slowest_rank_and_the_slowest_actor_are_waited_for() -> None:
    def each(kind: str, *which: object) -> float:
        return {"learner": 2.0, "load": 3.0}[kind] * int(str(which[-1])) if kind in ("learner", "load") else 0.0

    run = Run(1, 0, 4, 3, {}, lambda _: [["p"]])
    (step,) = simulate(run, each)
    assert (step.learn, step.load, step.end) == (4, 9, 22)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20), st.integers(1, 5))
def test_rollouts_take_between_the_mean_and_the_sum(lengths: Sequence[float], actors: int) -> None:
    blocks = [[str(number)] for number in range(len(lengths))]

    def each(kind: str, *which: object) -> float:
        return lengths[int(str(which[1]))] if kind == "rollout" else 0.0

    took = simulate(Run(1, 0, actors, 1, {}, lambda _: blocks), each)[0].rollout
    assert max(*lengths, sum(lengths) / actors) - 1e-9 <= took <= sum(lengths) + 1e-9


def test_a_call_goes_to_the_shortest_queue() -> None:
    queue = Queue(2)
    assert [queue.call(0, 4), queue.call(0, 1), queue.call(0, 1), queue.call(0, 1)] == [4, 1, 5, 2]
    assert queue.call(3, 1) == 4
    assert queue.call(3, 1) == 5
    assert queue.call(10, 1) == 11


def test_durations_are_functions_of_their_arguments_around_a_mean() -> None:
    drawn = Durations({"rollout": 8.0}, spread=0.5, seed=1, speed=2.0)
    found = [drawn.of("rollout", step, "p") for step in range(4000)]
    assert found[7] == drawn.of("rollout", 7, "p")
    assert len(set(found)) == len(found)
    assert found[7] != Durations({"rollout": 8.0}, spread=0.5, seed=2, speed=2.0).of("rollout", 7, "p")
    assert statistics.fmean(found) == pytest.approx(4, rel=0.04)
    assert statistics.stdev(found) == pytest.approx(2, rel=0.1)
    assert Durations({"rollout": 8.0}, speed=2.0).of("rollout", 7, "p") == 4


@pytest.mark.slow
def test_a_tiny_run_is_measured_against_its_ideal() -> None:
    """Two rollout actors and two steps, forty times as fast as an H200."""
    from tests.benchmarks.scale import Case, in_child, means, plan, settings, suited

    case = suited(Case(2, "async", steps=2, speed=40.0))
    found = in_child(case)
    ideal = simulate(plan(settings(case)), Durations(means(case), case.spread, case.seed, case.speed).of)
    assert found["ideal_seconds"] == pytest.approx(ideal[-1].end, abs=0.01)
    assert found["ideal_seconds"] < found["seconds"] < found["ideal_seconds"] + 30
    assert (found["ray_actors"], found["groups_per_step"]) == (8, 8)
    for phase in ("rollout", "learn", "publish"):
        measured, at_best = found["phases"][phase]
        assert measured > at_best - 0.005, phase
    assert found["spilled_bytes"] == 0
    assert found["store_gb"] > 0.02, "the eight groups of a step"
    assert 50 < found["driver_mb"][0] < 1000
