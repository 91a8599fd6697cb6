"""Processes that die or stick for good: the run ends soon, says in one line who it was, and leaves nothing behind."""

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from actors import calls
from actors.cluster import Cluster, Published
from actors.reference import ReferenceActor
from actors.rollout import RolloutActor
from actors.sampling import Sampling
from t2ir1_ray import config
from t2ir1_ray.errors import RunError
from t2ir1_ray.loop.experience import assemble
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.records.schema import Rollouts
from t2ir1_ray.trainer import train
from tests.system.runs import (
    actor_process,
    assert_same_metrics,
    metrics,
    small_config,
    title,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def test_two_ranks_go_on_from_a_damaged_checkpoint_and_one_of_them_is_killed(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks take over from step 2 of one rank's run, because step 4 has a flipped byte and the later ones are gone.

    Rank 1 is killed in mid-step: rank 0 only sees its partner vanish, and raises. The one that is named is rank 1.
    """
    folder = tmp_path / "two"
    shutil.copytree(whole, folder)
    for step in (6, 8):
        shutil.rmtree(folder / "checkpoints" / f"step_{step:06d}")
    weights = folder / "checkpoints" / "step_000004" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    processes, killed = [], []

    def kill() -> None:
        while len(metrics(folder)) != 5:  # of the copy it has more at first
            time.sleep(0.02)
        processes.extend(actor_process(name) for name in ("learner-0", "learner-1", "rollout-0", "expert-hps-0"))
        while "LearnerActor.step" not in title(processes[1]):
            time.sleep(0.002)
        killed.append(time.monotonic())
        processes[1].kill()

    threading.Thread(target=kill, daemon=True).start()
    settings = config.load(str(folder / "config.yaml"), ["learner.ranks=2"])
    with pytest.raises(RunError, match="^learner 1: died during step [^\n]*$"):
        train(settings, folder, resume=True)
    assert time.monotonic() - killed[0] < 30
    assert not psutil.wait_procs(processes, timeout=10)[1]
    assert "step_000004 is not whole (model.safetensors has other contents" in " ".join(capsys.readouterr().out.split())
    train(settings, folder, resume=True)
    assert_same_metrics(metrics(whole), metrics(folder), tolerance=1e-5)


def test_one_of_two_learners_raises(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two ranks runs out of memory, and the second waits for it."""

    class Partner:  # defined here, so that its processes need not import this module
        def step(self, rank: int) -> None:
            if rank == 0:
                raise RuntimeError("out of memory")
            time.sleep(3600)

    monkeypatch.setattr(calls, "PARTNERS_S", 1.0)
    ranks = [ray.remote(Partner).options(num_cpus=0).remote() for _ in range(2)]
    steps = calls.numbered("learner", [actor.step.remote(rank) for rank, actor in enumerate(ranks)])
    with pytest.raises(RunError, match="^learner 0: step failed: RuntimeError: out of memory$"):
        calls.wait_for_all(steps, "step", timeout_s=300)
    for actor in ranks:
        ray.kill(actor)


def fall_back(actor: RolloutActor) -> None:
    """From now on its samples are those of the version before."""
    actor.whole = actor.sampler.sample

    def sample(*job: Any) -> Rollouts:
        samples = actor.whole(*job)
        return replace(samples, policy_version=samples.policy_version - 1)

    actor.sampler.sample = sample


def lose_a_number(actor: RolloutActor) -> None:
    """From now on the first log-prob of each plan is NaN."""

    def sample(*job: Any) -> Rollouts:
        samples = actor.whole(*job)
        return replace(samples, semantic_logprobs=[ids * np.nan for ids in samples.semantic_logprobs])

    actor.sampler.sample = sample


def know_nothing(actor: ReferenceActor) -> None:
    """From now on all log-probs are NaN."""
    actor.temperature = float("nan")


def test_every_wait_names_who_does_not_answer(local_ray: None, tmp_path: Path) -> None:
    """One process after another is stopped; in the end all of them are, and the cluster ends nevertheless."""
    settings = small_config(tmp_path / "small.yaml")
    prompts = read_prompts(settings.data.prompts).slice(0, 2)
    rows = prompts.to_pylist()
    sampling = Sampling(4, 1.0, 1.0, seed=0, stream="step 1")

    with Cluster.launch(settings) as cluster:
        cluster.push_version(cluster.publish(0))
        pending = [cluster.score(rows[row], samples) for row, samples in cluster.sample(prompts, sampling, 2)]
        batch = assemble([cluster.finish(group) for group in pending], settings, 1).batch
        assert cluster.changed
        weights = cluster.publish(1)
        assert not cluster.changed  # nothing was learned in between
        nothing = np.zeros(len(batch), np.float32)
        idle = replace(batch, semantic_token_weight=nothing, image_token_weight=nothing)
        assert cluster.learn(idle, on_policy=True)["grad_norm"] == 0
        for spoil, words in (
            (fall_back, "is of policy version -1 instead of 0"),
            (lose_a_number, "a log-prob of its plan is not finite"),
        ):
            rollout = cluster.rollouts.actors[0]
            ray.get(rollout.__ray_call__.remote(spoil))
            with pytest.raises(RunError, match=f"^rollout 0: sample 0 of prompt {rows[0]['prompt_id']}:? {words}$"):
                list(cluster.sample(prompts, sampling, 2))
        cluster.held = Published(7, None, [])  # as after a restart, when NCCL has brought the weights
        with pytest.raises(RunError, match="^rollout 0: holds version 0 instead of 7"):
            list(cluster.sample(prompts, sampling, 2))
        ray.get(cluster.reference.actors[0].__ray_call__.remote(know_nothing))
        words = f"^reference 0: sample 0 of prompt {rows[0]['prompt_id']}: a log-prob of its plan is not finite$"
        with pytest.raises(RunError, match=words):
            cluster.finish(cluster.score(rows[0], pending[0].rollouts))
        settings.cluster.call_timeout_s = settings.cluster.load_timeout_s = 1.0
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
