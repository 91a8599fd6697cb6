"""The loop: roll out, score, learn, publish. Read this file first; it names every other part of the system."""

from pathlib import Path

from actors.cluster import Cluster
from actors.rollout import Sampling
from t2ir1_ray.config import Config
from t2ir1_ray.experience import assemble
from t2ir1_ray.heldout import HeldOut
from t2ir1_ray.journal import Journal, Stopwatch
from t2ir1_ray.prompts import read_prompts, step_rows


def train(config: Config, run: Path) -> None:
    """Train `config.train.steps` steps on a connected Ray cluster and leave everything about it in the folder `run`."""
    prompts = read_prompts(config.data.prompts)
    heldout = HeldOut(config) if config.eval.every else None
    with Journal(run, config) as journal, Cluster.start(config) as cluster:
        cluster.publish(version=0)
        if heldout:
            journal.write({"step": 0, "policy_version": 0, **heldout.evaluate(cluster)})

        for step in range(1, config.train.steps + 1):
            watch = Stopwatch()
            batch = prompts.take(step_rows(len(prompts), config.data.prompts_per_step, config.train.seed, step))
            rows = batch.to_pylist()
            rollout = config.rollout
            sampling = Sampling(
                rollout.group_size, rollout.temperature, rollout.guidance, config.train.seed, f"step {step}"
            )

            with watch("rollout"):  # experts and reference work on early groups while later ones are sampled
                pending = {
                    row: cluster.score(rows[row], samples)
                    for row, samples in cluster.sample(batch, sampling, rollout.prompts_per_call)
                }
            with watch("score"):
                groups = [cluster.finish(pending[row]) for row in sorted(pending)]
            experience = assemble(groups, config)
            with watch("learn"):
                update = cluster.learn(experience.batch)
            with watch("publish"):
                cluster.publish(version=step)

            metrics = {"step": step, "policy_version": step, **update, **experience.metrics, **watch.seconds()}
            metrics["rollout/images_per_s"] = len(experience.rollouts) / watch["rollout"]
            metrics["staleness"] = float(step - 1 - experience.rollouts.policy_version.min())
            if heldout and (step % config.eval.every == 0 or step == config.train.steps):
                metrics |= heldout.evaluate(cluster)
            journal.write(metrics, experience)
            if step == config.train.steps or (config.journal.save_every and step % config.journal.save_every == 0):
                journal.save_checkpoint(step, cluster.export)
