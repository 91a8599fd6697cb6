"""What the driver knows of its actors: from calls and answers to lanes."""

import time
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.activity import MOST_SPANS, Activity, Span, at_most, one_after_another


class Call:
    """What `remote` gives, without Ray."""

    def __init__(self) -> None:
        self.answer: Future[None] = Future()

    def future(self) -> Future[None]:
        return self.answer


def names(spans: list[Span]) -> list[str]:
    return [span.what for span in spans]


def test_a_call_counts_from_its_beginning_to_its_answer() -> None:
    activity = Activity()
    one, other = Call(), Call()
    activity.watch_all({"rollout 0": one, "rollout 1": other}, "generate")
    time.sleep(0.05)
    one.answer.set_result(None)
    time.sleep(0.05)
    look = activity.look()
    lengths = {who: spans[0].end - spans[0].begin for who, spans in look.lanes.items()}
    assert 0.04 < lengths["rollout 0"] < lengths["rollout 1"] - 0.04
    assert look.at_work.keys() == {"rollout 1"}
    usage = activity.usage()
    assert usage.keys() == {"usage/busy/rollout-0", "usage/busy/rollout-1", "usage/idle/rollout", "usage/queue/rollout"}
    assert 0.3 < usage["usage/busy/rollout-0"] < 0.7
    assert usage["usage/busy/rollout-1"] > 0.9
    assert 0.1 < usage["usage/idle/rollout"] < 0.4
    other.answer.set_exception(RuntimeError("died"))
    assert activity.take().at_work == {}
    later = activity.look()
    assert later.lanes == {"rollout 0": [], "rollout 1": []}, "who is idle stays known"
    assert later.begin >= look.end


def test_calls_behind_another_one_wait_in_a_queue() -> None:
    activity = Activity()
    first, second = Call(), Call()
    for call in (first, second):
        activity.watch("expert own one 0", "score", call)
    time.sleep(0.05)
    first.answer.set_result(None)
    time.sleep(0.05)
    second.answer.set_result(None)
    usage = activity.usage()
    assert usage["usage/busy/expert-own-one-0"] > 0.9
    assert usage["usage/queue/expert-own-one"] == pytest.approx(0.5, abs=0.15)


def test_an_open_call_goes_on_behind_a_cut_and_knows_its_own_beginning() -> None:
    activity = Activity()
    activity.watch("learner 0", "step", Call())
    first = activity.take()
    time.sleep(0.02)
    second = activity.look()
    assert second.lanes["learner 0"][0].begin == first.end
    assert second.at_work["learner 0"].begin == first.lanes["learner 0"][0].begin


def test_restarts_are_told_once() -> None:
    activity = Activity()
    activity.note_restarts({"expert hps 0": 1, "rollout 0": 0})
    assert activity.take().restarts == {"expert hps 0": 1}
    activity.note_restarts({"expert hps 0": 1, "rollout 0": 2})
    assert activity.take().restarts == {"rollout 0": 2}
    assert activity.take().restarts == {}


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("a", 0, 4), ("a", 1, 7)], [("a", 0, 7)]),  # the second one waited in the queue
        ([("a", 0, 4), ("b", 1, 7)], [("a", 0, 4), ("b", 4, 7)]),
        ([("a", 1, 2), ("a", 3, 4)], [("a", 1, 2), ("a", 3, 4)]),
        ([("a", -5, 3), ("b", 8, 99)], [("a", 0, 3), ("b", 8, 10)]),
        ([("a", -5, -3), ("b", 11, 12)], []),
        ([("a", 0, 9), ("b", 1, 2)], [("a", 0, 9)]),  # answered out of order, after a restart
    ],
)
def test_one_after_another(calls: list[tuple[str, float, float]], expected: list[tuple[str, float, float]]) -> None:
    assert one_after_another([Span(*call) for call in calls], 0, 10) == [Span(*span) for span in expected]


times = st.floats(-2, 12)
calls = st.builds(lambda what, a, b: Span(what, min(a, b), max(a, b)), st.sampled_from("ab"), times, times)


@given(st.lists(calls, max_size=40), st.integers(1, 6))
def test_lanes_are_in_order_and_bounded(made: list[Span], most: int) -> None:
    spans = one_after_another(made, 0, 10)
    for lane in (spans, at_most(spans, most)):
        edges = [edge for span in lane for edge in (span.begin, span.end)]
        assert edges == sorted(edges)
        assert all(0 <= edge <= 10 for edge in edges)
    few = at_most(spans, most)
    assert len(few) == min(most, len(spans))
    assert all(any(f.begin <= span.begin and span.end <= f.end for f in few) for span in spans)
    covered = {point / 10 for point in range(100) for call in made if call.begin < point / 10 < call.end}
    assert all(any(span.begin <= point <= span.end for span in spans) for point in covered), "nothing is lost"


def test_the_longest_part_names_a_joined_span() -> None:
    spans = [Span("a", 0, 1), Span("b", 1.1, 3), Span("c", 9, 10)]
    assert at_most(spans, 2) == [Span("b", 0, 3), Span("c", 9, 10)]
    assert len(at_most([Span("a", n, n + 0.5) for n in range(1000)], MOST_SPANS)) == MOST_SPANS
    assert at_most([], 3) == []
