"""All actors of a run behind one object: start, roll out, score, learn, publish, stop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray

from actors import placement
from actors.calls import Pool, wait_for
from actors.engine_environment import CPU_ENVIRONMENT, ENVIRONMENT
from actors.expert import ExpertActor
from actors.learner import LearnerActor
from actors.placement import Placement, Role
from actors.reference import ReferenceActor
from actors.rollout import RolloutActor, Sampling
from rewards.base import ExpertScores
from t2ir1_ray.config import Config
from t2ir1_ray.errors import RunError
from t2ir1_ray.schema import LearnerBatch, ReferenceLogprobs, Rollouts, Scores

CPU_ONLY = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


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


@dataclass
class Cluster:
    """Handles of a run's actors. `version` is the policy version that every rollout actor holds."""

    config: Config
    placement: Placement
    learners: list[Any]
    rollouts: Pool
    experts: dict[str, Pool]
    reference: Pool | None
    version: int = -1
    weights: list[ray.ObjectRef] = field(default_factory=list)

    @classmethod
    def start(cls, config: Config) -> Self:
        """Reserve resources, start every actor, and return when all have loaded their models.

        Raises UserError if resources or checkpoints do not do, RunError if an actor is not up in time.
        """
        reserved = placement.reserve(config)
        try:
            cluster = cls._launch(config, reserved)
            cluster._await_start()
        except BaseException:
            reserved.release()
            raise
        return cluster

    @classmethod
    def _launch(cls, config: Config, reserved: Placement) -> Self:
        by_name = {role.name: role for role in placement.roles(config)}

        def spawn(actor_class: type, role: Role, args: Sequence[Any], **options: Any) -> list[Any]:
            env = _environment(role, options.pop("runtime_env", {}))
            return [
                ray.remote(actor_class)
                .options(name=f"{role.name}-{i}", runtime_env=env, **reserved.options(role, i), **options)
                .remote(*[argument(i) if callable(argument) else argument for argument in args])
                for i in range(role.count)
            ]

        restarts = {"max_restarts": config.reward.retries, "max_task_retries": config.reward.retries}
        ranks = config.learner.ranks
        learner_args = (
            config.policy,
            config.learner,
            lambda rank: rank,
            ranks,
            config.rollout.temperature,
        )
        reference_args = (config.policy, config.reference.tokens_per_batch, config.rollout.temperature)
        return cls(
            config,
            reserved,
            learners=spawn(LearnerActor, by_name["learner"], learner_args),
            rollouts=Pool(
                "rollout", spawn(RolloutActor, by_name["rollout"], (config.policy, config.rollout), **restarts)
            ),
            experts={
                name: Pool(
                    f"expert {name}",
                    spawn(
                        ExpertActor,
                        by_name[f"expert-{name}"],
                        (expert.kind, expert.path, expert.dtype, expert.batch_size, expert.options),
                        runtime_env=expert.runtime_env,
                        **restarts,
                    ),
                )
                for name, expert in config.experts.items()
            },
            reference=Pool("reference", spawn(ReferenceActor, by_name["reference"], reference_args, **restarts))
            if "reference" in by_name
            else None,
        )

    def _await_start(self) -> None:
        timeout = self.config.cluster.start_timeout_s
        pools = [*self.experts.values(), self.rollouts, *([self.reference] if self.reference else [])]
        for pool in pools:  # experts first: a wrong checkpoint is known before anything slow
            for index, actor in enumerate(pool.actors):
                wait_for(actor.__ray_ready__.remote(), f"{pool.name} {index}", "start", timeout)
        host, port = wait_for(self.learners[0].address.remote(), "learner 0", "start", timeout)
        connected = [learner.connect.remote(host, port) for learner in self.learners]
        for rank, ref in enumerate(connected):
            wait_for(ref, f"learner {rank}", "connect", timeout)
        if self.config.rollout.weight_transfer == "nccl":
            host, port = wait_for(self.learners[0].address.remote(), "learner 0", "start", timeout)
            args = (host, port, self.rollouts.actors, timeout)
            joined = [learner.join_transfer.remote(*args) for learner in self.learners]
            for rank, ref in enumerate(joined):
                wait_for(ref, f"learner {rank}", "join the weight transfer", timeout)

    def publish(self, version: int) -> None:
        """Hand the learner's parameters to every rollout actor as `version`, each confirming version and digest."""
        timeout = self.config.cluster.call_timeout_s
        what = f"publish version {version}"
        if self.config.rollout.weight_transfer == "nccl":
            sent = [learner.send.remote(version) for learner in self.learners]
            digest = [wait_for(ref, f"learner {rank}", what, timeout) for rank, ref in enumerate(sent)][0]
            confirmations = [actor.confirm.remote() for actor in self.rollouts.actors]
            self.weights = []
        else:
            packed = [learner.publish.options(num_returns=2).remote(version) for learner in self.learners]
            digest = wait_for(packed[0][1], "learner 0", what, timeout)
            self.weights = [packed[0][0]]
            confirmations = [actor.load.remote(self.weights[0]) for actor in self.rollouts.actors]
        for index, ref in enumerate(confirmations):
            confirmed = wait_for(ref, f"rollout {index}", f"load version {version}", timeout)
            if tuple(confirmed) != (version, digest):
                raise RunError(f"rollout {index}: took in weights {confirmed}, published were {(version, digest)}")
        self.version = version

    def sample(
        self, prompts: pa.Table, sampling: Sampling, prompts_per_call: int
    ) -> Iterator[tuple[int, ray.ObjectRef]]:
        """Roll out every prompt; yields (row in `prompts`, reference to its `Rollouts` batch) as groups finish.

        Prompts go to actors in fixed blocks, so that a block's batch, and with it every bit of its samples, does not
        depend on the number of actors. Each actor holds two blocks at most: one at work, one waiting.
        """
        blocks = [range(i, min(i + prompts_per_call, len(prompts))) for i in range(0, len(prompts), prompts_per_call)]
        waiting = list(reversed(blocks))
        running: dict[Any, Iterator[int]] = {}
        timeout = self.config.cluster.call_timeout_s
        while waiting or running:
            while waiting and len(running) < 2 * len(self.rollouts.actors):
                block = waiting.pop()
                table = prompts.slice(block.start, len(block))
                args = (table, sampling, self.version, self.weights)
                running[self.rollouts.call("generate", *args, num_returns="streaming")] = iter(block)
            ready, _ = ray.wait(list(running), num_returns=1, timeout=timeout, fetch_local=False)
            if not ready:
                raise RunError(f"rollout: no group of {sampling.stream} within {timeout:g} s")
            for stream in ready:
                row = next(running[stream], None)
                if row is None:
                    self._end_stream(stream)
                    del running[stream]
                else:
                    yield row, next(stream)

    def _end_stream(self, stream: Any) -> None:
        """Take the end mark of a finished stream, where a late error would show."""
        try:
            next(stream)
        except StopIteration:
            self.rollouts.done(stream)

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
        timeout = self.config.cluster.call_timeout_s
        scores = {}
        for name, ref in group.scores.items():
            pool = self.experts[name]
            found = Scores.from_arrow(wait_for(ref, pool.name, f"score prompt {group.prompt['prompt_id']}", timeout))
            pool.done(ref)
            scores[name] = ExpertScores(np.asarray(found.score), found.status, found.error)
        reference = None
        if self.reference and group.reference:
            answer = wait_for(group.reference, "reference", f"prompt {group.prompt['prompt_id']}", timeout)
            self.reference.done(group.reference)
            reference = ReferenceLogprobs.from_arrow(answer)
        rollouts = wait_for(group.rollouts, "rollout", f"prompt {group.prompt['prompt_id']}", timeout)
        return ScoredGroup(group.prompt, Rollouts.from_arrow(rollouts), scores, reference)

    def learn(self, batch: LearnerBatch) -> dict[str, float]:
        """One update over all learner ranks; returns its metrics."""
        shards = np.array_split(np.arange(len(batch)), len(self.learners))
        calls = [
            learner.step.remote(batch.take(shard).to_arrow())
            for learner, shard in zip(self.learners, shards, strict=True)
        ]
        timeout = self.config.cluster.call_timeout_s
        return [wait_for(ref, f"learner {rank}", "step", timeout) for rank, ref in enumerate(calls)][0]

    def export(self, folder: str) -> None:
        """Write the policy as a plain transformers checkpoint (rank 0 writes)."""
        calls = [learner.export.remote(folder) for learner in self.learners]
        for rank, ref in enumerate(calls):
            wait_for(ref, f"learner {rank}", "export", self.config.cluster.call_timeout_s)

    def stop(self) -> None:
        """End every actor and free their resources."""
        pools = [self.rollouts, *self.experts.values(), *([self.reference] if self.reference else [])]
        for actor in [*self.learners, *(actor for pool in pools for actor in pool.actors)]:
            ray.kill(actor)
        self.placement.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _environment(role: Role, runtime_env: dict[str, Any]) -> dict[str, Any]:
    """Runtime environment of an actor: what its libraries read from the environment, then the configuration's own."""
    variables = dict(CPU_ONLY) if role.num_gpus == 0 else {}
    if role.name == "rollout":
        variables |= ENVIRONMENT | (CPU_ENVIRONMENT if role.num_gpus == 0 else {})
    return {**runtime_env, "env_vars": {**variables, **runtime_env.get("env_vars", {})}}
