"""Runs that are interrupted, against the uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from t2ir1_ray.errors import UserError
from t2ir1_ray.report_page import read_run
from t2ir1_ray.train import main
from tests.system.browser import CHROMIUM, need_chromium
from tests.system.following import Onlooker
from tests.system.runs import (
    STEPS,
    assert_same_metrics,
    command_line,
    has_done,
    interrupt,
    metrics,
    started,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def torn(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Onlooker | None]:
    """A run with one accident after another, and who watched it in Chromium all the while, where this machine has one.

    Each kind of actor is killed in mid-step: all but the learner start again, and their work is done again. The
    learner's death ends the run. It goes on, is terminated, and is then given to `tests.chaos`, which kills the whole
    of it in mid-step (its seed says so), damages what is on the disk, and lets it go on to its end.
    """
    run = tmp_path_factory.mktemp("resumed") / "torn"
    onlooker = Onlooker(run)

    def kill_actors(command: psutil.Popen) -> None:
        for step, actor in enumerate(("RolloutActor", "ExpertActor", "ReferenceActor", None, "LearnerActor")):
            wait_until(partial(has_done, run, step), command)
            if actor:
                started(command, actor).kill()

    with onlooker if CHROMIUM else nullcontext():
        code, errors, seconds = interrupt(run, 0, kill_actors, *command_line(run))
        assert (code, errors.count("\n")) == (1, 1), errors
        assert errors.startswith("error: learner 0: died during")
        assert errors.endswith(f": go on with --resume {run}\n")
        assert seconds < 30
        found = metrics(run)
        assert found[4]["actors/restarts"] == 3
        assert_same_metrics(metrics(whole)[: len(found)], found, tolerance=0)

        code, errors, seconds = interrupt(run, 5, psutil.Process.terminate, "--resume", str(run))
        assert code == 1
        assert errors.strip().count("\n") == 0, errors
        assert "asked to end after step" in errors
        assert f"--resume {run}" in errors
        assert seconds < 30
        saved = json.loads((max((run / "checkpoints").glob("step_*")) / "state.json").read_text())
        assert saved["step"] == len(metrics(run)) - 1 < STEPS - 1

        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 9')  # as if killed in the middle of a line
        (run / "checkpoints" / ".step_000009.partial").mkdir()
        chaos = [sys.executable, "-m", "tests.chaos", "--whole", str(whole), "--go-on", str(run), "--minutes", "0"]
        chaos += ["--kinds", "job", "--faults", "1", "--seed", "16"]
        done = subprocess.run(chaos, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["survived"] == told["injected"] >= 1
        assert "SIGKILL of the job" in done.stdout
        if CHROMIUM:
            onlooker.wait_for(state="finished", step=STEPS)
    return run, onlooker if CHROMIUM else None


def test_a_run_with_one_accident_after_another_goes_on_exactly(whole: Path, torn: tuple[Path, Any]) -> None:
    run, _ = torn
    assert_same_metrics(metrics(whole), metrics(run), tolerance=0)
    assert not list((run / "checkpoints").glob(".*"))
    assert sorted(p.name for p in (run / "rollouts").iterdir()) == sorted(
        p.name for p in (whole / "rollouts").iterdir()
    )
    assert not (run / "now.json").exists()


def test_who_watches_such_a_run_sees_it_all(torn: tuple[Path, Onlooker | None]) -> None:
    """From an empty folder to the last step, without a reload."""
    need_chromium()
    run, onlooker = torn
    assert onlooker.complaints == []
    told = [(shown["state"], shown["words"]) for shown in onlooker.seen]
    (ended,) = [place for place, (state, words) in enumerate(told) if state == "ended" and "asked to end" in words][:1]
    starts = [place for place, (state, words) in enumerate(told) if "to go on behind step" in words]
    assert told[0] == ("waiting", "for the run to begin")
    assert "starting" in [state for state, _ in told[:ended]]
    assert "training" in [state for state, _ in told[:ended]]
    assert starts[0] < ended < starts[-1], "behind the learner's death, and behind the end that was asked for"
    steps = [shown["step"] for shown in onlooker.seen if shown["step"] is not None]
    falls = [(a, b) for a, b in zip(steps, steps[1:], strict=False) if b < a]
    assert len(falls) <= 2, "only what was behind the last checkpoint, when the learner and when all was killed"
    assert steps[-1] == STEPS
    assert onlooker.seen[-1]["lanes"] == 2 + 4, "an axis, whom all wait for, and an actor of each kind"
    history = read_run(run).history
    assert [tile["step"] for tile in history.tiles if tile["kind"] == "step"] == list(range(STEPS + 1))
    assert len(history.began) == 4


def test_a_changed_run_is_refused_unless_forced(whole: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*learner.beta: 0.01 is now 0.5[^\n]*$"):
        main(["--resume", str(whole), "learner.beta=0.5"])


def ctrl_c(command: psutil.Popen) -> None:
    """As a terminal does: to every process."""
    os.killpg(command.pid, signal.SIGINT)


def test_ctrl_c_while_actors_start(tmp_path: Path) -> None:
    folder = tmp_path / "starting"
    code, errors, seconds = interrupt(folder, None, ctrl_c, *command_line(folder, "learner.beta=0"))
    assert (code, errors) == (130, "interrupted\n")
    assert seconds < 30


def test_ctrl_c_while_an_actor_does_not_answer(whole: Path, tmp_path: Path) -> None:
    """In mid-run. The run has another seed, and with it other metrics."""

    def stop(command: psutil.Popen) -> None:
        started(command, "RolloutActor").suspend()
        time.sleep(1)
        ctrl_c(command)

    folder = tmp_path / "running"
    overrides = ["train.steps=60", "train.seed=1", "learner.beta=0"]
    code, errors, seconds = interrupt(folder, 1, stop, *command_line(folder, *overrides))
    assert (code, errors) == (130, "interrupted\n")
    assert seconds < 30
    assert metrics(folder)[1]["reward/mean"] != metrics(whole)[1]["reward/mean"]
