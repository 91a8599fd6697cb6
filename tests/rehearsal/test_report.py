"""What every role did: by hand-made time lines."""

import json
from pathlib import Path

import pytest

from actors.startup import peak_gb
from t2ir1_ray.loop.timeline import Timeline
from t2ir1_ray.rehearsal.report import role_of, summarize

LANES = {  # 6 s of rollouts, 1 of scores behind them, 2 of learning, 1 of publishing
    "rollout 0": [["generate", 0, 6000], ["take_version", 9500, 10000]],
    "rollout 1": [["generate", 0, 4000], ["take_version", 9500, 10000]],
    "expert hps 0": [["score", 4000, 7000]],
    "learner 0": [["step", 7000, 9000], ["publish", 9000, 9500]],
}


def test_seconds_and_waits_by_hand() -> None:
    found = summarize([(LANES, 10000), (LANES, 10000)])
    rollout, learner, expert = found["rollout"], found["learner"], found["expert-hps"]
    assert (rollout.actors, rollout.seconds, rollout.work) == (2, 5.5, 5)
    assert rollout.waited == {"rollouts": 1, "scores": 1, "learning": 2, "publishing": 0.5}
    assert (learner.actors, learner.seconds, learner.work) == (1, 2.5, 2)
    assert learner.waited == {"rollouts": 6, "scores": 1, "learning": 0, "publishing": 0.5}
    assert expert.waited == {"rollouts": 4, "scores": 0, "learning": 2, "publishing": 1}


def test_the_mean_is_over_steps() -> None:
    idle = {actor: [] for actor in LANES}
    found = summarize([(LANES, 10000), (idle, 500)])
    assert found["learner"].seconds == 1.25
    assert found["learner"].waited["rollouts"] == 3
    for each in found.values():
        assert each.seconds + sum(each.waited.values()) == pytest.approx(5)  # half a second, nobody knows for what


def test_actors_have_the_roles_that_they_are_placed_as() -> None:
    assert [role_of(actor) for actor in ("learner 12", "expert my-judge 0")] == ["learner", "expert-my-judge"]


def test_a_trace_tells_the_peaks(tmp_path: Path) -> None:
    Timeline().write(tmp_path / "trace.json", {"learner 0": peak_gb()})
    assert 0.05 < json.loads((tmp_path / "trace.json").read_text())["otherData"]["peak_gb"]["learner 0"] < 50
