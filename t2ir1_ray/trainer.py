"""The loop: collect, learn, publish. Read this file first; it names every other part of the system."""

import time
from functools import partial
from pathlib import Path

from actors.activity import Activity
from actors.cluster import Cluster, LearnerCheckpoint
from actors.connect import connect
from actors.placement import roles
from t2ir1_ray.config import Config
from t2ir1_ray.errors import RunError
from t2ir1_ray.fitting.prompts import heldout_prompts, training_prompts
from t2ir1_ray.fitting.utilisation import Utilisation
from t2ir1_ray.journal.journal import Journal
from t2ir1_ray.journal.resume import ROLLOUTS_S, Termination
from t2ir1_ray.loop.collector import Collector
from t2ir1_ray.loop.experience import assemble, compared_codebook
from t2ir1_ray.loop.heldout import HeldOut
from t2ir1_ray.loop.timeline import Timeline, throughput


def train(config: Config, run: Path, resume: bool = False) -> None:
    """Train `config.train.steps` steps on a Ray cluster and leave everything about it in the folder `run`.

    `resume`: go on behind the newest whole checkpoint of `run`, as if nothing had happened in between.
    Raises RunError if the process was asked to end, after a checkpoint.
    """
    prompts, skipped = training_prompts(config)
    heldout = HeldOut(config, heldout_prompts(config)) if config.eval.every else None
    codebook = compared_codebook(config)
    steps = config.train.steps
    timeline, activity = Timeline(), Activity()
    gpus = sum(role.count * role.num_gpus for role in roles(config))
    with Journal(run, config, resume, activity) as journal:
        snapshot = journal.newest_snapshot() if resume else None
        done = saved = snapshot.step if snapshot else 0
        journal.begin_after(done)
        connect(config.cluster)  # Ray disconnects when the process ends, after its last line
        utilisation = Utilisation.of(config)
        with (
            Termination() as termination,
            Cluster.launch(
                config, snapshot and LearnerCheckpoint(snapshot.folder, snapshot.ranks), run, journal.say, activity
            ) as cluster,
            Collector(config, cluster, prompts, timeline) as collector,
        ):
            ahead, accuracy = collector.ahead, None
            journal.export(lambda: {"actors/down": len(cluster.watch.down)})

            def write_all(folder: Path, timeout_s: float | None = None) -> list[str]:  # all that a checkpoint holds
                shards = cluster.write_checkpoint(folder)
                collector.save_in_flight(folder, done, timeout_s)
                return shards

            termination.defer()
            journal.started(done)
            if snapshot:
                collector.restore_in_flight(snapshot.folder)
            collector.request_version(cluster.publish(version=done))
            if heldout and not done:
                journal.write({"step": 0, "policy_version": 0, **collector.do_between(heldout.evaluate)})
            for step in range(done + 1, min(done + 1 + ahead, steps) + 1):
                collector.request_step(step)

            begin = time.perf_counter()
            for step in range(done + 1, steps + 1):
                collected = collector.await_step(step, termination.asked)
                if collected is None:
                    break
                experience = assemble(collected.groups, config, step, codebook)
                staleness = step - 1 - int(experience.rollouts.policy_version.min())
                with timeline("learn", step):
                    update = cluster.learn(experience.batch, on_policy=staleness == 0)
                with timeline("publish", step):
                    pushed = collector.request_version(cluster.publish(version=step))
                    if not ahead:
                        pushed.result()

                metrics = {"step": step, "policy_version": step, **update, **experience.metrics, **collected.probed}
                metrics |= {"staleness": staleness, "groups/replaced": collected.replaced, **timeline.seconds(step)}
                metrics |= {"samples/stale": collector.stale, "prompts/skipped": skipped}
                metrics["actors/restarts"] = cluster.restarts()
                metrics["time/step_s"] = time.perf_counter() - begin
                metrics |= throughput(len(experience.rollouts), experience.tokens, metrics["tokens"], metrics, gpus)
                metrics |= utilisation.metrics(experience.batch, metrics["time/learn_s"])
                metrics["rollout/images_per_s"] = metrics["throughput/rollout_images"]
                metrics["throughput/publish_gb"] = cluster.version_bytes / 1e9 / metrics["time/publish_s"]
                metrics |= {"publish/bytes": cluster.version_bytes, "publish/changed": float(cluster.changed)}
                metrics |= activity.usage()
                if heldout and (step % config.eval.every == 0 or step == steps):
                    metrics |= collector.do_between(heldout.evaluate)
                begin = time.perf_counter()
                if step + 1 + ahead <= steps:
                    collector.request_step(step + 1 + ahead)  # it is sampled while this one is written down
                accuracy = metrics.get("heldout/accuracy")
                journal.write(metrics, experience)
                done = step
                due = config.journal.save_every and step % config.journal.save_every == 0
                if due or (step == steps and config.journal.save_last):
                    journal.add_checkpoint(step, accuracy, write_all)
                    saved = step

            if termination.asked.is_set():
                if done > saved and config.journal.save_last:
                    journal.add_checkpoint(done, accuracy, partial(write_all, timeout_s=ROLLOUTS_S))
                go_on = f": go on with --resume {run}" if saved or config.journal.save_last else ""
                raise RunError(f"asked to end after step {done} of {steps}{go_on}")
            if config.journal.profile:
                timeline.write(run / "trace.json", cluster.peak_memory())
