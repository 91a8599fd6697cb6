"""The processes of an evaluation: rollout actors with the checkpoint, and the models that judge, on Ray."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self

import pyarrow as pa
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors import placement
from actors.calls import Pool, wait_for
from actors.cluster import Cluster, Published
from actors.placement import Placement, Role
from actors.rollout import RolloutActor
from actors.sampling import Sampling
from actors.spawning import REPEATED, actor_environment
from t2ir1_ray.benchmarks.judge import Judge
from t2ir1_ray.benchmarks.witness import WitnessActor
from t2ir1_ray.config import Config, ExpertConfig
from t2ir1_ray.errors import UserError

RESTARTS = {"max_restarts": 2, **REPEATED}


class Devices:
    """Everything that draws and judges. Use as a context: leaving it ends the actors."""

    def __init__(self, config: Config, experts: Mapping[str, ExpertConfig], actors: int | None, judge: Judge | None):
        """actors: rollout actors; None: one for every GPU that the judges leave, on CPUs what the configuration says.

        Raises UserError if the cluster or a checkpoint does not do.
        """
        self.timeout = config.cluster.call_timeout_s
        self.judge = judge
        self.asked: dict[ray.ObjectRef, Pool] = {}
        judges = [Role(f"judge-{name}", e.replicas, e.num_cpus, e.num_gpus) for name, e in experts.items()]
        drawers = policy_role("rollout", config, actors, judges)
        self.placement = reserve([drawers, *judges], config.cluster.place_timeout_s)
        try:
            pool = start(self.placement, RolloutActor, drawers, (config.policy, config.rollout, False))
            self.witnesses = {
                name: start(self.placement, WitnessActor, role, _arguments(expert), f"judge {name}", expert.runtime_env)
                for role, (name, expert) in zip(judges, experts.items(), strict=True)
            }
            # The checkpoint itself is version 0, which every rollout actor has read: nothing is ever pushed.
            self.cluster = Cluster(config, self.placement, [], pool, self.witnesses, None, Published(0, None, []))
            for one in (*self.witnesses.values(), pool):
                await_start(one, config.cluster.start_timeout_s)
        except BaseException:
            self.placement.release()
            raise

    def sample(
        self, prompts: pa.Table, sampling: Sampling, prompts_per_call: int
    ) -> Iterator[tuple[int, ray.ObjectRef]]:
        """(row in `prompts`, handle of its `Rollouts` batch) as they are drawn."""
        return self.cluster.sample(prompts, sampling, prompts_per_call)

    def call(self, judge: str, method: str, *arguments: Any) -> Any:
        """Start a method of a judge; a handle for `result`."""
        if judge == "judge":
            return getattr(self.judge, method)(*arguments)
        handle = self.witnesses[judge].call(method, *arguments)
        self.asked[handle] = self.witnesses[judge]
        return handle

    def ready(self, handles: Mapping[str, Any]) -> bool:
        refs = [handle for handle in handles.values() if isinstance(handle, ray.ObjectRef)]
        futures = [handle for handle in handles.values() if isinstance(handle, Future)]
        return all(future.done() for future in futures) and (
            not refs or len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)
        )

    def result(self, handle: Any, what: str) -> Any:
        """Wait for an answer."""
        if isinstance(handle, Future):
            return handle.result()
        pool = self.asked.pop(handle, None)
        answer = wait_for(handle, pool.name if pool else "rollout", what, self.timeout)
        if pool:
            pool.done(handle)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.judge:
            self.judge.close()
        self.cluster.stop()


def _arguments(expert: ExpertConfig) -> tuple[Any, ...]:
    return expert.kind, expert.path, expert.dtype, expert.batch_size, expert.options


def policy_role(name: str, config: Config, actors: int | None, others: Sequence[Role] = ()) -> Role:
    """Actors that hold the policy, with a rollout actor's resources. actors: how many; None: one for every GPU that the
    others leave, on CPUs what the configuration says."""
    each = config.rollout.num_cpus, config.rollout.num_gpus
    if actors or config.rollout.num_gpus == 0:
        return Role(name, actors or config.rollout.actors, *each)
    taken = math.ceil(sum(role.count * role.num_gpus for role in others))
    free = ray.cluster_resources().get("GPU", 0) - taken
    return Role(name, max(1, int(free // config.rollout.num_gpus)), *each)


def start(
    placement: Placement,
    actor_class: type,
    role: Role,
    arguments: tuple[Any, ...],
    name: str | None = None,
    env: dict[str, Any] | None = None,
) -> Pool:
    """Ask for a role's actors at their reserved places; name: as errors call them (default: the role's)."""
    options = {"runtime_env": actor_environment(role, env or {}), **RESTARTS}
    actors = [
        ray.remote(actor_class).options(**options, **placement.options(role, index)).remote(*arguments)
        for index in range(role.count)
    ]
    return Pool(name or role.name, actors)


def await_start(pool: Pool, timeout_s: float) -> None:
    """Raises RunError or UserError in one line if an actor does not start."""
    for index, actor in enumerate(pool.actors):
        wait_for(actor.__ray_ready__.remote(), f"{pool.name} {index}", "start", timeout_s)


def reserve(roles: list[Role], timeout_s: float) -> Placement:
    """Everything at once, or a line that says what was asked for."""
    layout = placement.plan(roles)
    group = placement_group(layout.bundles, strategy="PACK", name="t2ir1_ray_evaluate")
    if group.wait(timeout_s):
        return Placement(group, layout)
    remove_placement_group(group)
    asked = ", ".join(f"{r.count} {r.name} of {r.num_gpus:g} GPU and {r.num_cpus:g} CPU" for r in roles)
    has = ray.available_resources()
    raise UserError(
        f"resources: not placed within {timeout_s:g} s: {asked}; free are {has.get('GPU', 0):g} GPU and "
        f"{has.get('CPU', 0):g} CPU: lower --actors, rollout.num_gpus or --expert NAME.num_gpus"
    )
