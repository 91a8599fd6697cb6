"""Lanes of actors from lines of activity.jsonl: whom everybody waits for, and lines that no journal writes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ir1_ray.report_page.lanes import DRIVER, MOST_PIECES, front, read_line, waits

STEP = {
    "rollout 0": [("generate", 10, 60)],
    "rollout 1": [("generate", 10, 40)],
    "expert hps 0": [("score", 50, 70)],
    "reference 0": [("logprobs", 40, 65)],
    "learner 0": [("step", 75, 95)],
}


def test_who_is_idle_waits_for_the_earliest_stage_that_is_busy() -> None:
    pieces = front(STEP, 100)
    assert pieces == [
        (DRIVER, 0, 10),
        ("rollouts", 10, 40),
        ("rollout 0", 40, 60),
        ("experts", 60, 65),
        ("expert hps 0", 65, 70),
        (DRIVER, 70, 75),
        ("learner 0", 75, 95),
        (DRIVER, 95, 100),
    ]
    waited = waits(STEP, pieces)
    assert sorted(waited["rollout 1"]) == [(DRIVER, 20), ("learner 0", 20), ("rollout 0", 20)]
    assert waited["learner 0"][0] == ("rollouts", 30)
    assert sorted(waited["rollout 0"]) == [(DRIVER, 20), ("experts", 5), ("learner 0", 20)], "not for itself"


def test_an_async_run_waits_for_its_rollouts_while_the_learner_works() -> None:
    lanes = {"rollout 0": [("generate", 0, 80)], "learner 0": [("step", 0, 100)]}
    assert front(lanes, 100) == [("rollout 0", 0, 80), ("learner 0", 80, 100)]


@st.composite
def some_lanes(draw: st.DrawFn) -> dict[str, list[tuple[str, int, int]]]:
    lanes = {}
    for who in draw(st.sets(st.sampled_from(["rollout 0", "rollout 1", "expert a 0", "reference 0", "learner 0"]))):
        edges = sorted(draw(st.sets(st.integers(0, 1000), max_size=12)))
        lanes[who] = [("m", a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    return lanes


@given(some_lanes())
def test_pieces_tile_the_time_and_nobody_waits_longer_than_it_is_idle(
    lanes: dict[str, list[tuple[str, int, int]]],
) -> None:
    pieces = front(lanes, 1000)
    assert pieces[0][1] == 0
    assert pieces[-1][2] == 1000
    assert all(a[2] == b[1] and a[0] != b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert len(pieces) <= MOST_PIECES + 1
    for who, waited in waits(lanes, pieces).items():
        idle = 1000 - sum(e - b for _, b, e in lanes[who])
        assert sum(ms for _, ms in waited) <= idle + len(pieces)  # rounding
        assert all(ms > 0 for _, ms in waited)


def line(**facts: object) -> bytes:
    return json.dumps({"kind": "step", "at": 1000.5, "step": 3, "ms": 500, "lanes": {}} | facts).encode()


def test_a_line_becomes_a_tile() -> None:
    lanes = {
        "learner 0": [["step", 400, 900]],
        "rollout 10": [["generate", 0, 100]],
        "rollout 9": [],
        "expert hps 0": [],
    }
    found = read_line(line(lanes=lanes, restarts={"rollout 9": 2, "stranger 0": 1}, left_s=12.5))
    assert found["left_s"] == 12.5
    tile = found["tile"]
    assert list(tile["lanes"]) == ["rollout 9", "rollout 10", "expert hps 0", "learner 0"], "the order of the loop"
    assert tile["lanes"]["learner 0"] == [("step", 400, 500)], "nothing goes on behind the end"
    assert tile["restarts"] == {"rollout 9": 2}
    assert "tile" not in read_line(line(lanes=lanes), drawn=False)
    start = read_line(line(kind="now", lanes={"a 0": [["__ray_ready__", 0, 9]]}, at_work={"a 0": ["__ray_ready__", 9]}))
    assert start["tile"]["lanes"]["a 0"][0][0] == "start"
    assert start["tile"]["at_work"] == {"a 0": ("start", 9)}


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        line(step="3"),
        line(step=-1),
        line(step=True),
        line(at=float("nan")),
        line(at="now"),
        line(kind=7),
        line(ms="long"),
        line(ms=float("inf")),
        line(lanes=[1]),
        line(lanes={"a 0": 7}),
        line(lanes={"a 0": [["step", "x", 3]]}),
        line(lanes={"a 0": [["step", 3]]}),
        line(lanes={"a 0": [["step", float("inf"), 3]]}),
        line(lanes={"a 0": []}, at_work={"a 0": []}),
        line(restarts=[]),
    ],
)
def test_what_the_journal_does_not_write_is_left_out(bad: bytes) -> None:
    assert read_line(bad) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_line_raises(value: object) -> None:
    for place in ("lanes", "restarts", "at_work", "text", "left_s", "steps", "ms"):
        found = read_line(line(**{place: value}))
        json.dumps(found, allow_nan=False)


def test_a_crowd_is_bounded() -> None:
    crowd = {f"rollout {n}": [["generate", 10 * k, 10 * k + 9] for k in range(200)] for n in range(600)}
    tile = read_line(line(lanes=crowd, ms=2000))["tile"]
    assert len(tile["lanes"]) == 512
    assert max(map(len, tile["lanes"].values())) == 64
