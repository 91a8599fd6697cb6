"""The commands of the README, as printed: each is run here, with fewer steps, or listed with the reason why not."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from tests.ports import free_port
from tests.system.newcomer import ROOT, STEPS, commands, prepared, running, wait_for_page
from tests.system.runs import assert_rehearsed, assert_same_metrics, command_line, metrics

pytestmark = pytest.mark.slow
ELSEWHERE = {
    "make": "CI itself runs `make test`, which sets up as `make train` does",
    "pip": "needs GPUs",
    "hf": "downloads",
    "for": "downloads",
    "git": "downloads",
    "export": "in `test_jobs_on_a_cluster`",
    "ray": "in `test_jobs_on_a_cluster`, but for the training of the 7B",
    "tensorboard": "in `test_tensorboard_and_dashboard_answer`",
    "python -m t2ir1_ray.doctor": "of a configuration with downloaded checkpoints; tests/core/test_doctor.py",
}
"""By their first words: why a command is not run by `test_a_command`."""
NARROW = ("learner.ranks=1", "rollout.actors=1", "data.prompts_per_step=2", "rollout.group_size=4")


def elsewhere(command: str) -> bool:
    return any(command.startswith(words) for words in ELSEWHERE)


@pytest.fixture(scope="module")
def place(newcomer: Path) -> Path:
    """The newcomer's folder with runs for all seeds."""
    for seed in (1, 2):
        shutil.copytree(newcomer / "runs" / "seed0", newcomer / "runs" / f"seed{seed}")
    return newcomer


def run(folder: Path, command: str) -> str:
    """What a command prints; if it needs Ray, it joins the cluster of this process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(prepared(command), cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("command", [c for c in commands() if not elsewhere(c) and "train.seed=0" not in c])
def test_a_command(command: str, place: Path) -> None:
    assert run(place, command).strip()


def test_what_the_commands_leave_behind(place: Path) -> None:
    checkpoint = place / "runs" / "seed0" / "checkpoints" / f"step_{STEPS:06d}"
    assert (checkpoint / "model.safetensors").is_file()
    assert (place / "runs" / "seed0" / "report.html").is_file()
    assert list(place.glob("generated/*/*.png"))
    assert list(place.glob("evaluations/*/*.json"))
    assert (place / "curves.svg").is_file()
    assert (place / "before_after.png").is_file()


def test_the_printed_mistake_is_what_a_mistake_prints() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    command, error = re.search(r"`python ([^`]*)` prints `(error: [^`]*)`", text).groups()
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (2, error)


def test_tensorboard_and_dashboard_answer(place: Path, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "tensorboard.log"
    with running([*prepared("tensorboard --logdir runs"), f"--port={port}"], log, cwd=place) as process:
        assert "seed0" in wait_for_page(f"http://127.0.0.1:{port}/data/runs", process, log)
    assert "Ray" in (place / "dashboard.html").read_text()


@pytest.mark.timeout(900)  # 350 s on a slow machine
def test_jobs_on_a_cluster(whole: Path, tmp_path: Path) -> None:
    """The README's first job and its rehearsal, with token authentication, on a cluster of this machine. The 7B is
    narrow, and has fewer actors. The job asks for NCCL, which does not work on CPUs: one line says so, and the run is
    that of the object store, whose actors take the names of those of the first try."""
    bin_folder = str(Path(sys.executable).parent)
    generate, start = (line for line in commands() if line.startswith("ray ") and "job" not in line)
    rehearse = next(line for line in commands() if line.endswith("--rehearse")).replace("$T2I", str(tmp_path / "t2i"))
    submit = next(line for line in (ROOT / "README.md").read_text().split("`") if line.startswith("ray job submit"))
    assert "export RAY_AUTH_MODE=token" in commands()
    dashboard = free_port()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    env |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    ports = [f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    log = tmp_path / "head.log"
    subprocess.run(prepared(generate), env=env, check=True, capture_output=True, timeout=120)
    assert (tmp_path / ".ray" / "auth_token").is_file()
    with running([*prepared(start), "--block", "--num-cpus=4", *ports], log, env=env) as head:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        words = [*prepared(submit), *command_line(tmp_path / "job"), f"train.steps={STEPS}"]
        words.append("rollout.weight_transfer=nccl")
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
        words = [*prepared(rehearse), "--rehearse-scale", "0.05", *NARROW]
        rehearsed = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    said = " ".join(done.stdout.split())
    assert said.count("warning: rollout.weight_transfer=nccl: ") == 1
    assert "starting again, with the object store instead" in said
    assert len(metrics(tmp_path / "job")) == STEPS + 1
    assert_same_metrics(metrics(whole)[: STEPS + 1], metrics(tmp_path / "job"), tolerance=0)
    assert rehearsed.returncode == 0, rehearsed.stdout[-3000:] + rehearsed.stderr[-2000:]
    assert_rehearsed(rehearsed.stdout, rollouts=1)
    assert list((tmp_path / "t2i" / "runs").iterdir()) == []
