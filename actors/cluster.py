"""All actors of a run behind one object: start, roll out, score, learn, publish, stop."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray

from actors import placement
from actors.activity import Activity
from actors.agreement import check_agreement, check_seen
from actors.answers import check_reference, check_rollouts
from actors.calls import Pool, first_ready, numbered, wait_for, wait_for_all
from actors.expert import PROBE
from actors.placement import Placement
from actors.sampling import Sampling
from actors.spawning import spawn
from actors.startup import peak_gb
from actors.transfer import Transfer, check_confirmed
from actors.watch import Watch, table_entries
from rewards.base import ExpertScores
from t2ir1_ray.config import Config
from t2ir1_ray.errors import RunError
from t2ir1_ray.records.schema import LearnerBatch, ReferenceLogprobs, Rollouts, Scores

TRIAL_S = 60.0
"""For the group of the NCCL transfer to meet, and again for the first version to arrive."""
PATIENCE_S = 60.0
"""How much longer learner ranks wait for one another than this process waits for them."""


@dataclass(frozen=True)
class ScoredGroup:
    """The samples of one prompt with everything that was found out about them."""

    prompt: dict[str, Any]
    rollouts: Rollouts
    scores: dict[str, ExpertScores]
    reference: ReferenceLogprobs | None  # None: beta is 0


@dataclass
class PendingGroup:
    """A group whose scores are being computed."""

    prompt: dict[str, Any]
    rollouts: ray.ObjectRef
    scores: dict[str, ray.ObjectRef]
    reference: ray.ObjectRef | None


@dataclass(frozen=True)
class Published:
    """A policy version on its way to the rollout actors. weights: one reference, or none if they go over NCCL."""

    version: int
    digest: str | None
    weights: list[ray.ObjectRef]


class TransferFailed(RunError):
    """The transfer over NCCL does not work here."""


@dataclass(frozen=True)
class LearnerCheckpoint:
    """Where the learner's state lies, and how many ranks wrote it."""

    folder: Path
    ranks: int


@dataclass
class Cluster:
    """Handles of a run's actors. `held` is the policy version that every rollout actor holds, `version_bytes` what one
    takes on its way there, `digest` that of the newest one, `changed` whether the one before it had another."""

    config: Config
    placement: Placement
    learners: list[Any]
    rollouts: Pool
    experts: dict[str, Pool]
    reference: Pool | None
    held: Published | None = None
    version_bytes: int = 0
    digest: str | None = None
    changed: bool = True
    stopped: bool = False
    say: Callable[[str], None] = print
    activity: Activity = field(default_factory=Activity)
    transfer: Transfer | None = None  # over NCCL; None: versions go through the object store

    def __post_init__(self) -> None:
        timeout_s, retries = self.config.cluster.node_timeout_s, self.config.reward.retries
        self.watch = Watch(self._actors(), timeout_s, retries, lambda line: self.say(line))
        for pool in self._pools():
            pool.activity = self.activity

    @classmethod
    def launch(
        cls,
        config: Config,
        checkpoint: LearnerCheckpoint | None = None,
        run: Path | None = None,
        say: Callable[[str], None] = print,
        activity: Activity | None = None,
    ) -> Self:
        """Reserve resources, start every actor, and return when all have loaded their models.

        checkpoint: what to set the learner back to; it may come from another number of ranks. run: the folder that
        all nodes must share. say: told what is waited for. activity: told about every call.

        A transfer over NCCL is tried out. If it does not work, everything starts again and goes on without it: what is
        stuck in NCCL does not come back.

        Raises UserError if resources, nodes or checkpoints do not do, RunError if an actor is not up in time.
        """
        arguments = checkpoint, run, say, activity or Activity()
        try:
            return cls._launch(config, *arguments)
        except TransferFailed as error:
            say(f"warning: rollout.weight_transfer=nccl: {error}: starting again, with the object store instead")
        rollout = replace(config.rollout, weight_transfer="object_store")
        return cls._launch(replace(config, rollout=rollout), *arguments)

    @classmethod
    def _launch(
        cls,
        config: Config,
        checkpoint: LearnerCheckpoint | None,
        run: Path | None,
        say: Callable[[str], None],
        activity: Activity,
    ) -> Self:
        reserved = placement.reserve(config, say)
        try:
            if run:
                check_agreement(config, run, reserved.roles_by_node())
            cluster = cls(config, reserved, *spawn(config, reserved), say=say, activity=activity)
            cluster._await_start(checkpoint)
        except TransferFailed:
            cluster.stop()
            cluster._await_end()
            raise
        except BaseException:
            reserved.release()
            raise
        return cluster

    def _await_start(self, checkpoint: LearnerCheckpoint | None) -> None:
        timeout = self.config.cluster.start_timeout_s
        ready = {who: ref for pool in self._pools() for who, ref in pool.each("__ray_ready__").items()}
        wait_for_all(ready, "start", timeout, self.watch.look)
        several = len(self.learners) > 1
        host, port = wait_for(self.learners[0].address.remote(several), "learner 0", "start", timeout)
        # Whoever waits here says who is missing; a collective operation that ended sooner would not.
        patience = self.config.cluster.call_timeout_s + PATIENCE_S
        self._on_learners("join_ranks", host, port, patience, timeout=timeout)
        if checkpoint:
            self._on_learners("restore_state", str(checkpoint.folder), checkpoint.ranks, timeout=timeout)
        self.version_bytes = wait_for(self.learners[0].version_bytes.remote(), "learner 0", "start", timeout)
        if self.config.rollout.weight_transfer == "nccl":
            try:
                self.transfer = Transfer.open(self.learners, self.rollouts.actors, TRIAL_S, self.watch.look)
                self.transfer.send(0, TRIAL_S)
            except RunError as error:
                raise TransferFailed(str(error)) from None

    def _await_end(self) -> None:
        """Until the names and devices of stopped actors are free again."""
        deadline = time.monotonic() + self.config.cluster.place_timeout_s
        while any(entry["State"] != "DEAD" for entry in table_entries(self._actors()).values()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)

    def publish(self, version: int) -> Published:
        """The learner's parameters as `version`, in the object store; over NCCL nothing moves before `push_version`."""
        if self.transfer:
            return Published(version, None, [])
        weights, digests = zip(
            *(learner.publish.options(num_returns=2).remote(version) for learner in self.learners), strict=True
        )
        digest, *_ = self._answers(digests, f"publish version {version}")
        self._note(digest)
        return Published(version, digest, [weights[0]])

    def push_version(self, published: Published) -> None:
        """Hand a version to every rollout actor, each confirming version and digest."""
        version, timeout = published.version, self.config.cluster.load_timeout_s
        if self.transfer:
            self._note(self.transfer.send(version, timeout))
        else:
            calls = self.rollouts.each("take_version", published.weights[0])
            found = wait_for_all(calls, f"load version {version}", timeout, self.watch.look)
            check_confirmed(dict(zip(calls, found, strict=True)), version, published.digest)
        self.held = published

    def _note(self, digest: str) -> None:
        self.changed, self.digest = digest != self.digest, digest

    def sample(
        self, prompts: pa.Table, sampling: Sampling, prompts_per_call: int
    ) -> Iterator[tuple[int, ray.ObjectRef]]:
        """Roll out every prompt; yields (row in `prompts`, reference to its `Rollouts` batch) as groups finish.

        Prompts go to actors in fixed blocks, so that a block's batch, and with it every bit of its samples, does not
        depend on the number of actors. Each actor holds two blocks at most: one at work, one waiting.

        Raises RunError if an actor fails or answers with anything but what it was asked for, see `check_rollouts`.
        """
        blocks = [range(i, min(i + prompts_per_call, len(prompts))) for i in range(0, len(prompts), prompts_per_call)]
        waiting = list(reversed(blocks))
        running: dict[Any, Iterator[int]] = {}
        timeout = self.config.cluster.call_timeout_s
        while waiting or running:
            while waiting and len(running) < 2 * len(self.rollouts.actors):
                block = waiting.pop()
                table = prompts.slice(block.start, len(block))
                args = (table, sampling, self.held.version, self.held.weights)
                running[self.rollouts.call("generate", *args, num_returns="streaming")] = iter(block)
            since, deadline = time.strftime("%H:%M:%S"), time.monotonic() + timeout
            ready, _ = first_ready(list(running), deadline, self.watch.look, fetch_local=False)
            if not ready:
                silent = ", ".join(sorted({self.rollouts.who(stream) for stream in running}))
                raise RunError(f"{silent}: no group of {sampling.stream} within {timeout:g} s (waited since {since})")
            for stream in ready:
                row, group = next(running[stream], None), next(stream, None)
                if row is None:  # the end mark
                    self.rollouts.done(stream)
                    del running[stream]
                else:
                    # Raises what the actor raised, or its death: nothing would follow in a stream that has failed.
                    who = self.rollouts.who(stream)
                    samples = Rollouts.from_arrow(self.wait(group, who, sampling.stream))
                    check_rollouts(who, samples, self.held.version)
                    yield row, group

    def score(self, prompt: dict[str, Any], rollouts: ray.ObjectRef) -> PendingGroup:
        """Start every expert and the reference on a finished group."""
        return PendingGroup(
            prompt,
            rollouts,
            {name: pool.call("score", rollouts, [prompt]) for name, pool in self.experts.items()},
            self.reference.call("logprobs", rollouts) if self.reference else None,
        )

    def finish(self, group: PendingGroup) -> ScoredGroup:
        """Wait for a group's scores and fetch everything."""
        prompt = f"prompt {group.prompt['prompt_id']}"
        scores = {name: self._scored(name, ref, group.prompt) for name, ref in group.scores.items()}
        rollouts = Rollouts.from_arrow(self.wait(group.rollouts, "rollout", prompt))
        reference = None
        if self.reference and group.reference:
            who = self.reference.who(group.reference)
            reference = ReferenceLogprobs.from_arrow(self.wait(group.reference, who, prompt))
            self.reference.done(group.reference)
            check_reference(who, rollouts, reference)
        return ScoredGroup(group.prompt, rollouts, scores, reference)

    def score_again(self, groups: Mapping[str, tuple[dict[str, Any], Rollouts]]) -> dict[str, ExpertScores]:
        """Each expert's scores of a group of its own, {expert: (prompt, its samples)}, before those that wait."""
        calls = {
            name: self.experts[name].call("score", rollouts.to_arrow(), [prompt], concurrency_group=PROBE)
            for name, (prompt, rollouts) in groups.items()
        }
        return {name: self._scored(name, ref, groups[name][0]) for name, ref in calls.items()}

    def _scored(self, name: str, ref: ray.ObjectRef, prompt: Mapping[str, Any]) -> ExpertScores:
        pool = self.experts[name]
        found = Scores.from_arrow(self.wait(ref, pool.who(ref), f"score prompt {prompt['prompt_id']}"))
        pool.done(ref)
        return expert_scores(found)

    def wait(self, ref: ray.ObjectRef, who: str, what: str) -> Any:
        """The answer of one actor. Raises RunError or UserError in one line that names it."""
        return wait_for(ref, who, what, self.config.cluster.call_timeout_s, self.watch.look)

    def learn(self, batch: LearnerBatch, on_policy: bool) -> dict[str, float]:
        """One update over all learner ranks; returns its metrics. `on_policy`: see `LearnerRank.step`."""
        shards = np.array_split(np.arange(len(batch)), len(self.learners))
        calls = [
            learner.step.remote(batch.take(shard).to_arrow(), on_policy)
            for learner, shard in zip(self.learners, shards, strict=True)
        ]
        return self._answers(calls, "step")[0]

    def write_checkpoint(self, folder: Path) -> list[str]:
        """Write the policy as a plain transformers checkpoint, and beside it the learner's state of all ranks.

        Returns what was written, as paths inside `folder`. Raises RunError if a rank writes to another disk than the
        one that this process sees.
        """
        written = self._on_learners("write_checkpoint", str(folder))
        check_seen(folder, written)
        return [name for files in written for name in files]

    def _on_learners(self, method: str, *args: Any, timeout: float | None = None) -> list[Any]:
        return self._answers([getattr(learner, method).remote(*args) for learner in self.learners], method, timeout)

    def _answers(self, calls: Sequence[ray.ObjectRef], what: str, timeout: float | None = None) -> list[Any]:
        """What every learner rank answers. Ranks are not started again: a dead one ends the run."""
        self.activity.watch_all(numbered("learner", calls), what.split()[0])
        seconds = timeout or self.config.cluster.call_timeout_s
        return wait_for_all(numbered("learner", calls), what, seconds, self.watch.look)

    def restarts(self) -> int:
        """How often actors have died and were started again, at the end of a step. Also notices who is back after
        short waits only."""
        self.watch.end_step()
        self.activity.note_restarts(dict(self.watch.restarts))
        return sum(self.watch.restarts.values())

    def peak_memory(self) -> dict[str, float]:
        """GB that every actor has held at most so far (`startup.peak_gb`), answered behind what it is doing."""
        calls = {who: actor.__ray_call__.remote(peak_gb) for who, actor in self._actors().items()}
        answers = wait_for_all(calls, "report", self.config.cluster.call_timeout_s, self.watch.look)
        return dict(zip(calls, answers, strict=True))

    def _pools(self) -> list[Pool]:
        return [self.rollouts, *self.experts.values(), *([self.reference] if self.reference else [])]

    def _actors(self) -> dict[str, Any]:
        named = [numbered(pool.name, pool.actors) for pool in self._pools()]
        return {who: actor for some in [*named, numbered("learner", self.learners)] for who, actor in some.items()}

    def stop(self) -> None:
        """End every actor and free their resources. Does nothing the second time."""
        if self.stopped:
            return
        self.stopped = True
        for actor in self._actors().values():
            ray.kill(actor)
        self.placement.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def expert_scores(scores: Scores) -> ExpertScores:
    """What an expert said, as it came over Arrow."""
    return ExpertScores(np.asarray(scores.score), scores.status, scores.error)
