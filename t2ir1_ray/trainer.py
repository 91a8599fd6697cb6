"""The loop: collect, learn, publish. Read this file first; it names every other part of the system."""

import time
from functools import partial
from pathlib import Path

from actors.cluster import Cluster
from t2ir1_ray.collector import Collector
from t2ir1_ray.config import Config
from t2ir1_ray.errors import RunError
from t2ir1_ray.experience import assemble
from t2ir1_ray.heldout import HeldOut
from t2ir1_ray.journal import Journal
from t2ir1_ray.prompts import read_prompts
from t2ir1_ray.resume import ROLLOUTS_S, Termination
from t2ir1_ray.timeline import Timeline


def train(config: Config, run: Path, resume: bool = False) -> None:
    """Train `config.train.steps` steps on a connected Ray cluster and leave everything about it in the folder `run`.

    `resume`: go on behind the newest whole checkpoint of `run`, as if nothing had happened in between.
    Raises RunError if the process was asked to end, after a checkpoint.
    """
    prompts = read_prompts(config.data.prompts)
    heldout = HeldOut(config) if config.eval.every else None
    steps = config.train.steps
    timeline = Timeline()
    with Termination() as termination, Journal(run, config, resume) as journal:
        snapshot = journal.newest_snapshot() if resume else None
        done = saved = snapshot.step if snapshot else 0
        journal.begin_after(done)
        with (
            Cluster.start(config, snapshot) as cluster,
            Collector(config, cluster, prompts, timeline) as collector,
        ):
            ahead, accuracy = collector.ahead, None

            def write(folder: Path, timeout_s: float | None = None) -> None:  # all that a checkpoint holds
                cluster.save(folder)
                collector.save(folder, done, timeout_s)

            termination.defer()
            if snapshot:
                collector.restore(snapshot.folder)
            collector.load(cluster.publish(version=done))
            if heldout and not done:
                journal.write({"step": 0, "policy_version": 0, **collector.run(heldout.evaluate)})
            for step in range(done + 1, min(done + ahead, steps) + 1):
                collector.start(step)

            for step in range(done + 1, steps + 1):
                begin = time.perf_counter()
                if step + ahead <= steps:
                    collector.start(step + ahead)
                collected = collector.result(step, termination.asked)
                if collected is None:
                    break
                experience = assemble(collected.groups, config)
                staleness = step - 1 - int(experience.rollouts.policy_version.min())
                with timeline("learn", step):
                    update = cluster.learn(experience.batch, on_policy=staleness == 0)
                with timeline("publish", step):
                    loaded = collector.load(cluster.publish(version=step))
                    if not ahead:
                        loaded.result()

                metrics = {"step": step, "policy_version": step, **update, **experience.metrics}
                metrics |= {"staleness": staleness, "groups/replaced": collected.replaced, **timeline.seconds(step)}
                metrics["staleness/dropped"] = collector.stale
                metrics["rollout/images_per_s"] = len(experience.rollouts) / metrics["time/rollout_s"]
                metrics["actors/restarts"] = cluster.restarts()
                metrics["time/step_s"] = time.perf_counter() - begin
                if heldout and (step % config.eval.every == 0 or step == steps):
                    metrics |= collector.run(heldout.evaluate)
                accuracy = metrics.get("heldout/accuracy")
                journal.write(metrics, experience)
                done = step
                if step == steps or (config.journal.save_every and step % config.journal.save_every == 0):
                    journal.save(step, accuracy, write)
                    saved = step

            if termination.asked.is_set():
                if done > saved:
                    journal.save(done, accuracy, partial(write, timeout_s=ROLLOUTS_S))
                raise RunError(f"asked to end after step {done} of {steps}: go on with --resume {run}")
        if config.journal.profile:
            timeline.write(run / "trace.json")
