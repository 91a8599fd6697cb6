"""Processes that die or stick for good: the run ends soon, says in one line who it was, and leaves nothing behind."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from actors import calls
from actors.cluster import Cluster, Published
from actors.sampling import Sampling
from t2ir1_ray import config
from t2ir1_ray.errors import RunError
from t2ir1_ray.loop.experience import assemble
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.trainer import train
from tests.system.runs import (
    actor_process,
    assert_same_metrics,
    has_done,
    interrupt,
    metrics,
    run,
    small_config,
    started,
    title,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
STEPS = 6


def place(folder: Path, *overrides: str) -> list[str]:
    """Arguments of a training command with a Ray cluster of its own, whose run is `folder`."""
    file = folder.with_suffix(".yaml")
    small_config(file)
    name = [f"journal.root={folder.parent}", f"journal.name={folder.name}"]
    return ["--config", str(file), "cluster.dashboard=false", f"train.steps={STEPS}", *name, *overrides]


def test_the_only_learner_is_killed(whole: Path, tmp_path: Path) -> None:

    def kill(command: psutil.Process) -> None:
        started(command, "LearnerActor").kill()

    folder = tmp_path / "one"
    code, errors, seconds = interrupt(folder, 3, kill, *place(folder))
    assert (code, errors.count("\n")) == (1, 1), errors
    assert errors.startswith("error: learner 0: died during")
    assert errors.endswith(f": go on with --resume {folder}\n")
    assert seconds < 30
    train(config.load(str(folder / "config.yaml")), folder, resume=True)
    assert_same_metrics(metrics(whole), metrics(folder), tolerance=0)


def test_one_of_two_learners_is_killed(whole: Path, tmp_path: Path) -> None:
    """In mid-step: rank 0 only sees its partner vanish, and raises. The one that is named is rank 1."""
    folder = tmp_path / "two"
    processes, killed = [], []

    def kill() -> None:
        while not has_done(folder, 3):
            time.sleep(0.02)
        processes.extend(actor_process(name) for name in ("learner-0", "learner-1", "rollout-0", "expert-hps-0"))
        while "LearnerActor.step" not in title(processes[1]):
            time.sleep(0.002)
        killed.append(time.monotonic())
        processes[1].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(RunError, match="^learner 1: died during step [^\n]*$"):
        run(folder, f"train.steps={STEPS}", "learner.ranks=2")
    assert time.monotonic() - killed[0] < 30
    assert not psutil.wait_procs(processes, timeout=10)[1]
    train(config.load(str(folder / "config.yaml")), folder, resume=True)
    assert_same_metrics(metrics(whole), metrics(folder), tolerance=1e-4)


class Partner:
    """One of two ranks of which the first runs out of memory and the second waits for it."""

    def step(self, rank: int) -> None:
        if rank == 0:
            raise RuntimeError("out of memory")
        time.sleep(3600)


def test_one_of_two_learners_raises(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PARTNERS_S", 1.0)
    ranks = [ray.remote(Partner).options(num_cpus=0).remote() for _ in range(2)]
    steps = calls.numbered("learner", [actor.step.remote(rank) for rank, actor in enumerate(ranks)])
    with pytest.raises(RunError, match="^learner 0: step failed: RuntimeError: out of memory$"):
        calls.wait_for_all(steps, "step", timeout_s=300)
    for actor in ranks:
        ray.kill(actor)


def test_every_wait_names_who_does_not_answer(local_ray: None, tmp_path: Path) -> None:
    """One process after another is stopped; in the end all of them are, and the cluster ends nevertheless."""
    settings = small_config(tmp_path / "small.yaml")
    prompts = read_prompts(settings.data.prompts).slice(0, 2)
    rows = prompts.to_pylist()
    sampling = Sampling(4, 1.0, 1.0, seed=0, stream="step 1")

    with Cluster.launch(settings) as cluster:
        cluster.push_version(cluster.publish(0))
        pending = [cluster.score(rows[row], samples) for row, samples in cluster.sample(prompts, sampling, 2)]
        batch = assemble([cluster.finish(group) for group in pending], settings).batch
        weights = cluster.publish(1)
        cluster.held = Published(7, None, [])  # as after a restart, when NCCL has brought the weights
        with pytest.raises(RunError, match="^rollout 0: holds version 0 instead of 7"):
            list(cluster.sample(prompts, sampling, 2))
        settings.cluster.call_timeout_s = 1.0
        prompt = f"prompt {rows[0]['prompt_id']}"
        no_answer = "no answer to {} within 1 s \\(waited since ..:..:..\\)$"

        expert, reference = actor_process("expert-hps-0"), actor_process("reference-0")
        expert.suspend()
        with pytest.raises(RunError, match="^expert hps 0: " + no_answer.format(f"score {prompt}")):
            cluster.finish(cluster.score(rows[0], pending[0].rollouts))
        reference.suspend()
        with pytest.raises(RunError, match="^reference 0: " + no_answer.format(prompt)):
            cluster.finish(replace(cluster.score(rows[0], pending[0].rollouts), scores={}))
        rollout = actor_process("rollout-0")
        rollout.suspend()
        with pytest.raises(RunError, match="^rollout 0: " + no_answer.format("load version 1")):
            cluster.push_version(weights)
        with pytest.raises(RunError, match=r"^rollout 0: no group of step 1 within 1 s \(waited since ..:..:..\)$"):
            list(cluster.sample(prompts, sampling, 1))
        learner = actor_process("learner-0")
        learner.suspend()
        with pytest.raises(RunError, match="^learner 0: " + no_answer.format("step")):
            cluster.learn(batch, on_policy=True)
        with pytest.raises(RunError, match="^learner 0: " + no_answer.format("publish version 2")):
            cluster.publish(2)
    assert not psutil.wait_procs([expert, reference, rollout, learner], timeout=20)[1]


@pytest.mark.parametrize("after_step", [None, 1])
def test_ctrl_c(after_step: int | None, tmp_path: Path) -> None:
    """While actors start, and in mid-run with an actor that does not answer; a terminal sends it to every process."""

    def ctrl_c(command: psutil.Process) -> None:
        if after_step:
            started(command, "RolloutActor").suspend()
            time.sleep(1)
        os.killpg(command.pid, signal.SIGINT)

    folder = tmp_path / "interrupted"
    code, errors, seconds = interrupt(folder, after_step, ctrl_c, *place(folder, "train.steps=60"))
    assert (code, errors) == (130, "interrupted\n")
    assert seconds < 30
