"""Short real trainings on the shapes world, and the comparison of their journals."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private.state import actors

from t2ir1_ray import config
from t2ir1_ray.config import Config
from t2ir1_ray.trainer import train
from tests.journals import TIMED, metrics

SMALL = ["data.prompts_per_step=2", "rollout.prompts_per_call=1", "eval.every=3", "eval.count=24"]
SMALL += ["journal.images_every=0", "journal.keep_last=0", "journal.save_every=2"]
"""Two prompts, each a call of its own: a second rollout actor has something to do."""
STEPS = 8
"""Of the run that all others are compared with."""
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own helpers, which look for their raylet only now and then: they end half a minute after a SIGKILL."""
ROLES = {"learner", "rollout", "reference", "expert-hps", "expert-git", "expert-grounding_dino", "expert-orm"}
"""Of a rehearsal."""
UNCOMPARED = {"rollout/images_per_s", "actors/restarts", "padding"}


def small_config(file: Path, *overrides: str, experts: tuple[str, ...] = ("hps",)) -> Config:
    """The shapes configuration with some of its experts and SMALL; `file` receives it before the overrides."""
    shipped = config.load("shapes", SMALL)
    shipped.experts = {name: shipped.experts[name] for name in experts}
    config.save(shipped, file)
    return config.load(str(file), overrides)


def run(folder: Path, *overrides: str, experts: tuple[str, ...] = ("hps",)) -> list[dict[str, Any]]:
    """Train on the Ray cluster of this process; returns the lines of metrics.jsonl."""
    train(small_config(folder.with_suffix(".yaml"), *overrides, experts=experts), folder)
    return metrics(folder)


def command_line(folder: Path, *overrides: str) -> list[str]:
    """Arguments of a training command with a Ray cluster of its own, whose run is `folder`."""
    file = folder.with_suffix(".yaml")
    small_config(file)
    name = [f"journal.root={folder.parent}", f"journal.name={folder.name}"]
    return ["--config", str(file), "cluster.dashboard=false", f"train.steps={STEPS}", *name, *overrides]


def has_done(folder: Path, step: int) -> bool:
    """Whether a run has written the metrics of `step`."""
    return len(metrics(folder)) > step


def actor_process(name: str) -> psutil.Process:
    """The process of a living actor of this process's cluster, such as `expert-hps-0`."""
    alive = [each["Pid"] for each in actors().values() if (each["Name"], each["State"]) == (name, "ALIVE")]
    return psutil.Process(alive[-1])


def heed_ctrl_c() -> None:
    """For a process before its command: a shell makes what it starts in the background ignore the signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(
    folder: Path, after_step: int | None, disturb: Callable[[psutil.Popen], Any], *arguments: str
) -> tuple[int, str, float]:
    """Train in a process of its own and disturb it behind a step, or (None) while its actors start.

    `disturb` is given the process of the command. Returns (exit code, stderr, seconds from the disturbance until its
    end), when no process that it started is left.
    """
    command = [sys.executable, "-m", "t2ir1_ray.train", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}

    with psutil.Popen(command, start_new_session=True, preexec_fn=heed_ctrl_c, **quiet) as driver:
        if after_step is None:
            wait_until(lambda: started(driver, "RolloutActor"), driver)
        else:
            wait_until(lambda: has_done(folder, after_step), driver)
        children = set(driver.children(recursive=True))
        disturb(driver)
        begin = time.monotonic()
        with suppress(psutil.Error):  # actors that were started again
            children |= set(driver.children(recursive=True))
        _, errors = driver.communicate(timeout=120)
        seconds = time.monotonic() - begin
    _, alive = psutil.wait_procs([child for child in children if title(child) not in RAY_AGENTS], timeout=30)
    assert not alive, alive
    return driver.returncode, errors, seconds


def wait_until(condition: Callable[[], Any], driver: psutil.Popen) -> None:
    """Wait for something that a running command does."""
    deadline = time.monotonic() + 240
    while not condition():
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def started(driver: psutil.Process, kind: str) -> psutil.Process | None:
    """The process of an actor class that a command has started."""
    return next((child for child in driver.children(recursive=True) if f"ray::{kind}" in title(child)), None)


def title(process: psutil.Process) -> str:
    """Its command line; actors say there which method they are in: `ray::LearnerActor.step`."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def assert_same_metrics(left: list[dict[str, Any]], right: list[dict[str, Any]], tolerance: float) -> None:
    """Every figure but those of time, of restarted actors and of how samples were cut into micro-batches."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        timeless = {key for key in a if not key.startswith(TIMED)} - UNCOMPARED
        assert timeless <= b.keys()
        for key in timeless:
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=tolerance), (a["step"], key)


def assert_rehearsed(said: str, rollouts: int) -> None:
    """A rehearsal with so many rollout actors says of every role what it did and what it waited for."""
    assert "step 3/3" in said
    table = said[re.search(r"^rehearsal: \d+\.\d s a step", said, re.MULTILINE).end() :].splitlines()
    rows = {line.split()[0]: line.split() for line in table if line.strip() and line.split()[0] in ROLES}
    assert rows.keys() == ROLES
    for role, (_, count, seconds, images, peak, *_) in rows.items():
        assert int(count) == (rollouts if role == "rollout" else 1)
        assert float(images) > 0
        assert float(peak) > 0.1
        assert float(seconds) < 60
    assert "rollouts" in " ".join(rows["learner"])
    assert "learning" in " ".join(rows["rollout"])
