"""What every role did: by hand-made traces, and by the trace that a timeline writes."""

import json
import time
from pathlib import Path

import pytest

from actors.usage import Usage, Used
from t2ir1_ray.loop.timeline import Timeline
from t2ir1_ray.rehearsal.report import PHASES, Actor, read_trace, summarize


def test_seconds_images_bytes_and_waits_by_hand() -> None:
    """Two steps in 0..20: rollouts take 6 s, scores 1, learning 2, publishing 1 of each."""
    starts = (0.0, 10.0)
    phases = {
        "rollout": [(s, s + 6) for s in starts],
        "score": [(s + 6, s + 7) for s in starts],
        "learn": [(s + 7, s + 9) for s in starts],
        "publish": [(s + 9, s + 10) for s in starts],
        "load": [],
    }
    first = Actor("rollout", 5.0, [((-9.0, 0.0), 64, 9), *[((s, s + 6), 32, 10**9) for s in starts]])
    second = Actor("rollout", 7.0, [((s, s + 4), 32, 10**9) for s in starts])
    expert = Actor("expert-hps", 2.0, [((s + 5, s + 7), 64, 0) for s in starts])
    learner = Actor("learner", 9.0, [((s + 7, s + 9), 64, 0) for s in starts])
    learner.calls += [((s + 9, s + 10), 0, 0) for s in starts]
    found = {each.role: each for each in summarize([first, second, expert, learner], phases, (0.0, 20.0), steps=2)}
    rollout = found["rollout"]
    assert (rollout.actors, rollout.seconds, rollout.peak_gb, rollout.moved_gb) == (2, 5, 7, 1)
    assert rollout.images_per_s == pytest.approx(128 / 20)
    assert rollout.waited == {"rollouts": 1, "scores": 1, "learning": 2, "publishing": 1}
    assert found["learner"].seconds == 3
    assert found["learner"].images_per_s == pytest.approx(32)
    assert found["learner"].waited == {"rollouts": 6, "scores": 1, "learning": 0, "publishing": 0}
    assert found["expert-hps"].waited == {"rollouts": 5, "scores": 0, "learning": 2, "publishing": 1}


def test_what_is_cut_off_by_the_window_does_not_count() -> None:
    actor = Actor("rollout", 1.0, [((5.0, 15.0), 10, 0)])
    (found,) = summarize([actor], {name: [] for name in PHASES}, (10.0, 20.0), 1)
    assert found.seconds == 5
    assert found.images_per_s == 1  # of the whole call


def test_a_trace_holds_the_drivers_phases_and_the_actors_calls(tmp_path: Path) -> None:
    timeline, usage = Timeline(), Usage()
    with timeline("learn", 3), usage("step", images=8, moved=5) as call:
        time.sleep(0.01)
        call.moved += 2
    with pytest.raises(ValueError), usage("step"):
        raise ValueError
    used = usage.report()
    assert [call.what for call in used.calls] == ["step"]
    assert 0.05 < used.peak_gb < 50  # this process
    timeline.write(tmp_path / "trace.json", {"expert my expert 0": used, "learner 1": Used([], 3.0)})
    driver, actors = read_trace(json.loads((tmp_path / "trace.json").read_text())["traceEvents"])
    ((begin, end),) = driver["learn", 3]
    expert, learner = actors
    assert (expert.role, learner.role, learner.peak_gb) == ("expert-my expert", "learner", 3.0)
    ((span, images, moved),) = expert.calls
    assert (images, moved) == (8, 7)
    assert begin - 0.005 < span[0] < span[1] < end + 0.005
