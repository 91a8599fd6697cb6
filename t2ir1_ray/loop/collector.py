"""Collecting experience: rollouts and their scores, for this step or for steps ahead of the learner.

One thread does everything that needs the rollout actors, strictly in the order in which it was asked: take in a new
policy version, sample a step, evaluate. So a step's samples come from one known version, whatever the timing, and
sync and async runs differ only in how far ahead steps are asked for. Another one waits for their last scores, while
rollout actors go on with what was asked for next.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import pyarrow as pa

from actors.cluster import Cluster, PendingGroup, Published, ScoredGroup
from actors.sampling import Sampling
from t2ir1_ray.config import Config
from t2ir1_ray.config.resuming import fingerprint
from t2ir1_ray.loop.experience import has_signal
from t2ir1_ray.loop.in_flight import read_steps, write_step
from t2ir1_ray.loop.probe import exchange, follows, order
from t2ir1_ray.loop.timeline import Timeline
from t2ir1_ray.records.prompts import extra_rows, step_rows

T = TypeVar("T")


@dataclass(frozen=True)
class Collected:
    """The scored groups of one step, how many were given up because all their rewards were equal, and what a probe of
    the experts has found."""

    groups: list[ScoredGroup]
    replaced: int
    probed: dict[str, float] = field(default_factory=dict)


class Collector:
    """The rollout side of a run, as a queue of work."""

    def __init__(self, config: Config, cluster: Cluster, prompts: pa.Table, timeline: Timeline):
        self.config, self.cluster, self.prompts, self.timeline = config, cluster, prompts, timeline
        self.ahead = config.train.max_staleness if config.train.mode == "async" else 0
        """Updates between the policy that samples and the one that learns."""
        self.stale = 0
        """Samples that came with a checkpoint and were given up, because that policy was older than `ahead` allows."""
        self._thread = ThreadPoolExecutor(1, "rollouts")
        self._scores = ThreadPoolExecutor(1, "scores")
        self._pushes: list[Future[None]] = []
        self._steps: dict[int, Future[Collected]] = {}

    def request_version(self, weights: Published) -> Future[None]:
        """Ask for a new policy version on all rollout actors, after what was asked for before."""
        self._pushes.append(self._thread.submit(self._push, weights))
        return self._pushes[-1]

    def request_step(self, step: int) -> None:
        """Ask for a step, by the version that was asked for last, unless it is there already."""
        if step in self._steps:
            return
        if self.config.learner.zero_variance == "resample":  # scores decide what the same policy samples beside
            self._steps[step] = self._thread.submit(self._collect, step)
            return
        sampled = self._thread.submit(self._sample, self._rows(step), step, f"step {step}")
        self._steps[step] = self._scores.submit(lambda: self._collected(self._finish(sampled.result(), step), 0, step))

    def await_step(self, step: int, asked: threading.Event) -> Collected | None:
        """Wait for a step, or until `asked` is set: None. Raises what went wrong with it or a version before it."""
        while not wait([self._steps[step]], timeout=0.2).done:
            if asked.is_set():
                return None
        collected = self._steps.pop(step).result()
        while self._pushes and self._pushes[0].done():
            self._pushes.pop(0).result()
        return collected

    def do_between(self, work: Callable[[Cluster], T]) -> T:
        """Wait for some other work with the rollout actors, such as an evaluation."""
        return self._thread.submit(work, self.cluster).result()

    def save_in_flight(self, folder: Path, done: int, timeout_s: float | None = None) -> None:
        """Put the steps that are ahead of step `done` into a checkpoint, as they were scored.

        timeout_s: what is not there by then is left out, and a run that goes on samples it again by a newer policy.
        """
        ahead = {step: future for step, future in self._steps.items() if step <= done + self.ahead}
        wait(ahead.values(), timeout_s)
        for step, future in ahead.items():
            if future.done() and not future.exception():  # what went wrong is raised when it is the step's turn
                found = future.result()
                write_step(folder, step, found.groups, found.replaced, found.probed, self._made_by())

    def restore_in_flight(self, folder: Path) -> None:
        """Take up the steps that `save_in_flight` put into a checkpoint, if these settings and prompts made them."""
        for step, found in read_steps(folder, self._made_by()).items():
            version = min(group.rollouts.policy_version.min() for group in found[0])
            if step - 1 - version > self.ahead:
                self.stale += sum(len(group.rollouts) for group in found[0])
            else:
                self._steps[step] = Future()
                self._steps[step].set_result(Collected(*found))

    def _made_by(self) -> str:
        """Names what experience depends on beside policy and step."""
        prompts = hashlib.sha256(json.dumps(self.prompts.to_pylist()).encode()).hexdigest()[:16]
        return f"{fingerprint(self.config)} {prompts}"

    def _push(self, weights: Published) -> None:
        with self.timeline("load", weights.version):
            self.cluster.push_version(weights)

    def _rows(self, step: int) -> np.ndarray:
        """Numbers (prompts_per_step,) of a step's prompts."""
        return step_rows(len(self.prompts), self.config.data.prompts_per_step, self.config.train.seed, step)

    def _collect(self, step: int) -> Collected:
        """A step with other prompts in place of those without a signal."""
        rows, count, seed = self._rows(step), self.config.data.prompts_per_step, self.config.train.seed
        groups = self._finish(self._sample(rows, step, f"step {step}"), step)
        used, replaced = set(rows.tolist()), 0
        for attempt in range(1, self.config.learner.max_resamples + 1):
            useful = [group for group in groups if has_signal(group, self.config, step)]
            lacking = count - len(useful)
            fresh = [row for row in extra_rows(len(self.prompts), seed, step, attempt) if row not in used][:lacking]
            if not fresh:
                break
            used.update(fresh)
            replaced += lacking
            groups = useful + self._finish(self._sample(fresh, step, f"step {step}, round {attempt}"), step)
        return self._collected(groups, replaced, step)

    def _collected(self, groups: list[ScoredGroup], replaced: int, step: int) -> Collected:
        """With what the experts' probe has found, if it is due."""
        every = self.config.reward.probe_every
        return Collected(groups, replaced, self._probe(groups, step) if every and (step - 1) % every == 0 else {})

    def _probe(self, groups: Sequence[ScoredGroup], step: int) -> dict[str, float]:
        """`expert/<name>/follows`: do its scores follow two images that change places? See `probe.follows`.

        An expert that has told no samples of a group apart is left out: that is a sign by itself.
        """
        exchanges = {name: exchange([group.scores[name] for group in groups]) for name in self.config.experts}
        asked = {name: (groups[places.group], places) for name, places in exchanges.items() if places}
        with self.timeline("score", step):
            found = self.cluster.score_again(
                {
                    name: (group.prompt, group.rollouts.take(order(len(group.rollouts), places)))
                    for name, (group, places) in asked.items()
                }
            )
        return {
            f"expert/{name}/follows": follows(group.scores[name], found[name], places)
            for name, (group, places) in asked.items()
        }

    def _sample(self, rows: Sequence[int] | np.ndarray, step: int, stream: str) -> list[PendingGroup]:
        """Roll prompts out, in their order; experts and reference begin with a group as soon as it is there."""
        rollout = self.config.rollout
        sampling = Sampling(
            rollout.group_size,
            rollout.temperature,
            rollout.guidance,
            self.config.train.seed,
            stream,
            images_per_plan=rollout.images_per_plan,
            guided_logprobs=self.config.learner.image_logprobs == "guided",
        )
        batch = self.prompts.take(rows)
        prompts = batch.to_pylist()
        with self.timeline("rollout", step):
            pending = {
                row: self.cluster.score(prompts[row], samples)
                for row, samples in self.cluster.sample(batch, sampling, rollout.prompts_per_call)
            }
        return [pending[row] for row in sorted(pending)]

    def _finish(self, pending: Sequence[PendingGroup], step: int) -> list[ScoredGroup]:
        """Wait for the scores of groups."""
        with self.timeline("score", step):
            return [self.cluster.finish(group) for group in pending]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        threads = self._thread, self._scores
        for thread in threads:
            thread.shutdown(wait=False, cancel_futures=True)
        self.cluster.stop()  # what the threads wait for ends, and with it the threads, before Ray does
        for thread in threads:
            thread.shutdown()
