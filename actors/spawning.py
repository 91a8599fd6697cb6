"""Starting the actors of a run: each role's class, arguments, place and environment."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from actors.calls import Pool
from actors.engine_environment import BATCH_INVARIANT, CPU_ENVIRONMENT, ENVIRONMENT
from actors.expert import PROBE, ExpertActor
from actors.learner import LearnerActor
from actors.placement import Placement, Role, roles
from actors.reference import ReferenceActor
from actors.rollout import RolloutActor
from actors.startup import DETERMINISTIC
from t2ir1_ray.config import Config

CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Without it cuBLAS may split a product differently from call to call."""
REPEATED = {"max_task_retries": -1}
"""A call is repeated for as long as its actor is started again. Any other number is soon used up by a lost node: until
Ray notices its death, after 14 s by default, its actors count as alive, and every try of a call is refused at once."""
RESTARTED = {"max_restarts": -1, **REPEATED}
"""`watch` says when it is enough: Ray counts over a whole run, and a run of days outlives many a node."""
EXPERT_THREADS = {"max_concurrency": 2, "concurrency_groups": {PROBE: 1}}
"""While a group has an expert's model, the next one is prepared; a probe waits for its turn at the model only."""
CPU_ONLY = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


class Actors(NamedTuple):
    """Handles, as soon as their constructors have been asked for. reference: None if beta is 0."""

    learners: list[Any]
    rollouts: Pool
    experts: dict[str, Pool]
    reference: Pool | None


def spawn(config: Config, reserved: Placement) -> Actors:
    """Start every actor at its reserved place."""
    by_name = {role.name: role for role in roles(config)}

    def start(actor_class: type, role: Role, args: Sequence[Any], **options: Any) -> list[Any]:
        env = actor_environment(role, options.pop("runtime_env", {}), config.train.deterministic)
        remote = ray.remote(concurrency_groups=options.pop("concurrency_groups", None))(actor_class)
        return [
            remote.options(name=f"{role.name}-{i}", runtime_env=env, **reserved.options(role, i), **options).remote(
                *[argument(i) if callable(argument) else argument for argument in args]
            )
            for i in range(role.count)
        ]

    retries = config.reward.retries
    guidance = config.rollout.guidance if config.learner.image_logprobs == "guided" else 1.0
    learner_args = (
        config.policy,
        config.learner,
        lambda rank: rank,
        config.learner.ranks,
        config.rollout.temperature,
        guidance,
        config.train.steps,
    )
    lora = config.learner.lora_rank > 0  # then pushes hold the adapted layers only
    rollout_args = (config.policy, config.rollout, True, lora)
    reference_args = (config.policy, config.reference.tokens_per_batch, config.rollout.temperature, guidance, retries)
    experts = {
        name: start(
            ExpertActor,
            by_name[f"expert-{name}"],
            (expert.kind, expert.path, expert.dtype, expert.batch_size, expert.options, retries),
            runtime_env=expert.runtime_env,
            **EXPERT_THREADS,
            **RESTARTED,
        )
        for name, expert in config.experts.items()
    }
    return Actors(
        start(LearnerActor, by_name["learner"], learner_args),
        Pool("rollout", start(RolloutActor, by_name["rollout"], rollout_args, **RESTARTED)),
        {name: Pool(f"expert {name}", actors) for name, actors in experts.items()},
        Pool("reference", start(ReferenceActor, by_name["reference"], reference_args, **RESTARTED))
        if "reference" in by_name
        else None,
    )


def actor_environment(role: Role, runtime_env: dict[str, Any], deterministic: bool = False) -> dict[str, Any]:
    """Runtime environment of an actor: what its libraries read from the environment, then the configuration's own.

    deterministic: the same bits every time also on GPUs. What the learner's backward pass cannot do so, fails; models
    that only run forward have operations that torch merely cannot vouch for.
    """
    gpu = role.num_gpus > 0
    # As Ray itself does, unless its node was started with another number, as `ray up` does with 1.
    threads = {"OMP_NUM_THREADS": str(max(1, int(role.num_cpus)))}
    variables = threads if gpu else dict(CPU_ONLY)
    if role.name == "rollout":
        variables |= ENVIRONMENT | ({} if gpu else CPU_ENVIRONMENT)
        variables |= BATCH_INVARIANT if gpu and deterministic else {}
    elif deterministic:
        variables |= {DETERMINISTIC: "error" if role.name == "learner" else "warn"} | CUBLAS
    return {**runtime_env, "env_vars": {**variables, **runtime_env.get("env_vars", {})}}
