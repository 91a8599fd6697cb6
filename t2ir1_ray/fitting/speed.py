"""How fast will it be, and is there a better way to share the same GPUs out? Findings for the doctor."""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

from actors.placement import plan, roles
from t2ir1_ray.config import Config
from t2ir1_ray.fitting.capacity import Check, Node, gpu_needs
from t2ir1_ray.fitting.memory import Shapes, estimate
from t2ir1_ray.fitting.step_time import ASSUMED_CARD, Card, StepTime, card_named, step_time

WORTH = 0.9
"""A split is worth saying if a step takes at most this share of the time."""
ROOM = 0.9
"""Of a GPU's memory: what nobody has tried is not proposed with less to spare."""


class Split(NamedTuple):
    """What to change, as `section.key=value`, and the seconds of a step then."""

    changes: tuple[str, ...]
    seconds: float


def step_checks(
    config: Config, shapes: Shapes, expert_parameters: Mapping[str, int | None], nodes: Sequence[Node]
) -> tuple[StepTime | None, list[Check]]:
    """The estimated step, and what is to be said about it; nothing unless learner and rollouts have GPUs."""
    if not config.learner.num_gpus or not config.rollout.num_gpus:
        return None, []
    seen = [card for node in nodes if (card := card_named(node.card))]
    card = min(seen, key=lambda each: each.tflop_per_s, default=ASSUMED_CARD)
    step = step_time(config, shapes, card)
    where = card.name if seen else f"{card.name}, for no GPU is seen here"
    phases = f"rollouts {step.rollout:.0f}, scores {step.score:.0f} more, learning {step.learn:.0f}"
    together = "two sides at once" if step.total < step.rollout + step.learn else "one after the other"
    text = f"step: about {step.total:.0f} s ({where}): {phases}, publishing {step.publish:.0f}, {together}"
    checks = [Check("ok", f"{text}: everyone waits for {step.slowest}")]
    sizes = [total for node in nodes for total, _ in node.gpu_gb]
    better = better_split(config, shapes, expert_parameters, card, min(sizes, default=card.memory_gb))
    if better:
        checks.append(Check("ok", f"step: about {better.seconds:.0f} s with {' '.join(better.changes)}"))
    return step, checks


def better_split(
    config: Config, shapes: Shapes, expert_parameters: Mapping[str, int | None], card: Card, gpu_gb: float
) -> Split | None:
    """The fastest split of the GPUs that the configuration asks for into learner ranks, rollout actors and the rest,
    with other sizes of rollout calls, whose roles all fit into `gpu_gb`. None: nothing is clearly faster.

    What a step computes stays the same: ranks and calls change no figure but the samples' random bits.
    """
    now = step_time(config, shapes, card).total
    found = Split((), now)
    for changes, changed in _candidates(config):
        seconds = step_time(changed, shapes, card).total
        if seconds < found.seconds and _fits(changed, shapes, expert_parameters, gpu_gb):
            found = Split(changes, seconds)
    return found if found.seconds <= WORTH * now else None


def _candidates(config: Config) -> Iterator[tuple[tuple[str, ...], Config]]:
    """Every other split over as many GPUs, with calls that keep all actors busy in each round; an expert that shares a
    GPU may have one of its own."""
    total = _gpus(config)
    if not config.learner.num_gpus or config.rollout.num_gpus < 1:
        return
    prompts = config.data.prompts_per_step
    alone = [f"experts.{name}" for name, expert in config.experts.items() if 0 < expert.num_gpus < 1]
    for own in ("", *alone):
        for ranks in (number for number in range(1, prompts + 1) if prompts % number == 0):
            changed = deepcopy(config)
            if own:
                changed.experts[own.removeprefix("experts.")].num_gpus = 1
            changed.learner.ranks, changed.rollout.actors = ranks, 1
            changed.rollout.actors += int((total - _gpus(changed)) // config.rollout.num_gpus)
            if changed.rollout.actors < 1 or _gpus(changed) > total:
                continue
            actors = changed.rollout.actors
            for call in {math.ceil(prompts / (actors * rounds)) for rounds in range(1, prompts + 1)}:
                each = deepcopy(changed)
                each.rollout.prompts_per_call = call
                yield _changes(config, each, own), each


def _changes(before: Config, after: Config, own: str) -> tuple[str, ...]:
    values = {
        "learner.ranks": (before.learner.ranks, after.learner.ranks),
        "rollout.actors": (before.rollout.actors, after.rollout.actors),
        "rollout.prompts_per_call": (before.rollout.prompts_per_call, after.rollout.prompts_per_call),
    }
    changed = [f"{key}={new}" for key, (old, new) in values.items() if old != new]
    return (*changed, *([f"{own}.num_gpus=1"] if own else []))


def _gpus(config: Config) -> float:
    return sum(bundle.get("GPU", 0) for bundle in plan(roles(config)).bundles)


def _fits(config: Config, shapes: Shapes, expert_parameters: Mapping[str, int | None], gpu_gb: float) -> bool:
    needs = gpu_needs(config, estimate(config, shapes, expert_parameters))
    return all(total <= ROOM * gpu_gb for _, total in needs.values())
