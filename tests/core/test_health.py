"""How a run is, in words, from what it left behind."""

import json
from typing import Any

import pytest

from t2ir1_ray.report_page.health import MOST_BYTES, MOST_TILES, History, health
from t2ir1_ray.report_page.signs import Clock, Heart
from t2ir1_ray.storage import SILENCE_S


def line(kind: str, step: int = 0, at: float = 0.0, **facts: Any) -> bytes:
    return json.dumps({"kind": kind, "step": step, "at": at, **facts}).encode() + b"\n"


def step(number: int, at: float = 0.0, **facts: Any) -> bytes:
    return line("step", number, at, ms=1000, lanes={"rollout 0": [["generate", 0, 900]]}, left_s=60.0 - number, **facts)


def after(*lines: bytes) -> History:
    history = History()
    history.add(lines)
    return history


BEGAN = line("began", 0, 1.0, steps=6)
STARTED = line("started", 0, 30.0)


@pytest.mark.parametrize(
    ("lines", "done", "beats", "state", "words"),
    [
        ([], None, None, "waiting", "for the run to begin"),
        ([], None, True, "starting", "its actors are brought up"),
        ([BEGAN], None, True, "starting", "its actors are brought up"),
        ([BEGAN], None, False, "no sign of life", "since it began"),
        ([BEGAN, STARTED], None, True, "training", "the first step is under way"),
        ([BEGAN, STARTED, step(0)], 0, True, "training", "the first step is under way"),
        ([BEGAN, STARTED, step(1)], 1, True, "training", "step 1 of 6 is done"),
        ([BEGAN, STARTED, step(1)], 1, False, "no sign of life", "--resume run goes on behind the last checkpoint"),
        ([BEGAN, STARTED, step(4), line("began", 4, steps=6)], 4, True, "starting", "to go on behind step 4"),
        (
            [BEGAN, STARTED, step(3), line("ended", 3, text="no memory")],
            3,
            None,
            "ended",
            "after step 3 of 6: no memory",
        ),
        ([BEGAN, line("ended", 0, text="too few CPUs")], None, None, "ended", "too few CPUs"),
        ([BEGAN, STARTED, step(6), line("ended", 6, text="")], 6, None, "finished", "6 of 6 steps"),
        ([BEGAN, STARTED, step(6)], 6, False, "finished", "6 of 6 steps"),
        ([], 6, None, "finished", "6 of 6 steps"),  # written before there was such a journal
        ([], 4, None, "ended", "after step 4 of 6: no process trains it"),
    ],
)
def test_states(lines: list[bytes], done: int | None, beats: bool | None, state: str, words: str) -> None:
    found = health(after(*lines), "run", done, 6, beats)
    assert found["state"] == state
    assert words in found["words"]


def test_time_left_checkpoint_and_warnings() -> None:
    history = after(
        BEGAN, STARTED, step(1), line("checkpoint", 1, 50.0), line("warning", 2, text="plans shrink"), step(2, 70.0)
    )
    found = health(history, "run", 2, 6, True)
    assert found["left_s"] == 58.0
    assert found["step_at"] == 70.0
    assert found["checkpoint"] == [1, 50.0]
    assert found["warnings"] == [[2, "plans shrink"]]
    assert found["resumed"] == []
    assert health(history, "run", 2, 6, False)["left_s"] is None, "a dead run gets nowhere"


def test_what_a_resumed_run_makes_again_is_forgotten() -> None:
    early = [BEGAN, STARTED, step(1), line("warning", 1, text="early"), line("checkpoint", 1), step(2)]
    late = [line("warning", 3, text="late"), step(3), line("checkpoint", 3)]
    history = after(*early, *late, line("began", 1, 500.0, steps=8))
    assert [tile["step"] for tile in history.tiles] == [1]
    found = health(history, "run", 1, 6, True)
    assert found["warnings"] == [[1, "early"]]
    assert found["checkpoint"][0] == 1
    assert found["step_at"] is None
    assert found["resumed"] == [1]
    assert health(after(line("began", 4)), "run", 4, 6, True)["resumed"] == [4], "begun before there was such a journal"
    history.add([line("started", 1), step(2, 600.0)])
    assert health(history, "run", 2, 6, True)["words"] == "step 2 of 8 is done", "it was told to go further"
    assert [tile["step"] for tile in history.tiles] == [1, 2]


def test_the_newest_tiles_stay() -> None:
    history = after(BEGAN, *(step(n) for n in range(1, 1001)))
    assert [tile["step"] for tile in history.tiles] == list(range(1001 - MOST_TILES, 1001))
    crowd = {f"rollout {n}": [["generate", 20 * k, 20 * k + 9] for k in range(16)] for n in range(64)}
    history.add([line("step", n, ms=1000, lanes=crowd) for n in range(1001, 1201)])
    assert history.tiles[-1]["step"] == 1200
    assert len(json.dumps(history.tiles)) < MOST_BYTES * 1.01
    assert len(history.tiles) < 200


def test_a_heart_beats_while_the_file_changes_whatever_the_clocks_say() -> None:
    heart = Heart()
    heart.feel(None, 0, 1000)
    assert heart.beats is None
    for second in range(0, 60, 3):  # a file server that is an hour ahead
        heart.feel(4600 + second, second, 1000 + second)
        assert heart.beats
    for second in range(58, 90):
        heart.feel(4657, second, 1000 + second)
    assert heart.beats is False
    heart.feel(4690, 91, 1091)
    assert heart.beats
    heart.feel(None, 92, 1092)
    assert heart.beats is None


@pytest.mark.parametrize(("age", "beats"), [(1.0, True), (SILENCE_S + 1, False), (1e6, False), (-5.0, True)])
def test_at_first_sight_the_age_of_the_heartbeat_counts(age: float, beats: bool) -> None:
    heart = Heart()
    heart.feel(1000 - age, 7, 1000)
    assert heart.beats is beats


def test_the_drivers_clock_is_learned_from_fresh_lines() -> None:
    clock = Clock()
    clock.hear(100, 1000, fresh=False)
    assert clock.now(1001) == 1001, "an old line tells nothing"
    clock.hear(710, 1010, fresh=True)  # five minutes behind us
    assert clock.now(1010) == 710
    clock.hear(712, 1020, fresh=True)  # read late
    assert clock.now(1020) == 720
    ahead = Clock()
    ahead.hear(1100, 1000, fresh=False)
    assert ahead.now(1000) == 1100, "no line is from the future"
