"""Where actors go: one atomic placement group with a bundle per actor, GPU fractions packed into whole-GPU bundles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from t2ir1_ray.config import Config
from t2ir1_ray.errors import UserError


@dataclass(frozen=True)
class Role:
    """`count` equal actors. num_gpus below 1 shares a GPU; above 1 it must be whole."""

    name: str
    count: int
    num_cpus: float
    num_gpus: float


def roles(config: Config) -> list[Role]:
    """Every actor that a training run starts."""
    rollout, reference, learner = config.rollout, config.reference, config.learner
    experts = [Role(f"expert-{n}", e.replicas, e.num_cpus, e.num_gpus) for n, e in config.experts.items()]
    references = [Role("reference", 1, reference.num_cpus, reference.num_gpus)] if learner.beta > 0 else []
    return [
        Role("learner", learner.ranks, learner.num_cpus, learner.num_gpus),
        Role("rollout", rollout.actors, rollout.num_cpus, rollout.num_gpus),
        *references,
        *experts,
    ]


@dataclass(frozen=True)
class Plan:
    """Bundles of the placement group, and for every actor (role name, index) its bundle."""

    bundles: list[dict[str, float]]
    bundle_of: dict[tuple[str, int], int]


def plan(wanted: Sequence[Role]) -> Plan:
    """First fit: whole GPUs and CPU-only actors get a bundle each, fractions share `{GPU: 1}` bundles.

    Fractions never straddle GPUs: without shared bundles eight actors of 0.75 GPU would leave eight useless quarters.
    """
    bundles: list[dict[str, float]] = []
    bundle_of: dict[tuple[str, int], int] = {}
    free: dict[int, float] = {}  # shared bundle -> GPU fraction left
    for role in wanted:
        for index in range(role.count):
            key = (role.name, index)
            if 0 < role.num_gpus < 1:
                target = next((b for b, left in free.items() if left + 1e-9 >= role.num_gpus), None)
                if target is None:
                    target = len(bundles)
                    bundles.append({"GPU": 1.0, "CPU": 0.0})
                    free[target] = 1.0
                free[target] -= role.num_gpus
                bundles[target]["CPU"] += role.num_cpus
            else:
                target = len(bundles)
                bundles.append({"CPU": role.num_cpus} | ({"GPU": float(role.num_gpus)} if role.num_gpus else {}))
            bundle_of[key] = target
    return Plan([{k: round(v, 4) for k, v in b.items() if v > 0} for b in bundles], bundle_of)


@dataclass(frozen=True)
class Placement:
    """Reserved resources of a run."""

    group: PlacementGroup
    plan: Plan

    def options(self, role: Role, index: int) -> dict[str, object]:
        """Ray actor options that put the actor into its bundle."""
        strategy = PlacementGroupSchedulingStrategy(self.group, self.plan.bundle_of[role.name, index])
        return {"num_cpus": role.num_cpus, "num_gpus": role.num_gpus, "scheduling_strategy": strategy}

    def release(self) -> None:
        remove_placement_group(self.group)


def reserve(config: Config) -> Placement:
    """Reserve everything that the run needs at once. Raises UserError with a table if the cluster cannot hold it."""
    wanted = roles(config)
    layout = plan(wanted)
    cluster = ray.cluster_resources()
    lacking = [
        resource
        for resource in ("CPU", "GPU")
        if math.fsum(bundle.get(resource, 0) for bundle in layout.bundles) > cluster.get(resource, 0) + 1e-6
    ]
    if lacking:
        raise UserError(_table(wanted, layout, f"the cluster has too few {' and '.join(f'{r}s' for r in lacking)}"))
    group = placement_group(layout.bundles, strategy="PACK", name="t2ir1_ray")
    if not group.wait(config.cluster.place_timeout_s):
        remove_placement_group(group)
        raise UserError(_table(wanted, layout, f"not placed within {config.cluster.place_timeout_s:g} s"))
    return Placement(group, layout)


def _table(wanted: Sequence[Role], layout: Plan, reason: str) -> str:
    """What was asked and what exists, one line per role."""
    total, free = ray.cluster_resources(), ray.available_resources()
    lines = [f"resources: {reason}: lower the numbers below in the configuration or add nodes"]
    lines.append(f"  {'role':<24}{'actors':>8}{'CPU each':>10}{'GPU each':>10}")
    lines += [f"  {role.name:<24}{role.count:>8}{role.num_cpus:>10g}{role.num_gpus:>10g}" for role in wanted]
    for label, of in (
        ("asked in total", lambda r: math.fsum(b.get(r, 0) for b in layout.bundles)),
        ("cluster has", lambda r: total.get(r, 0)),
        ("of it free", lambda r: free.get(r, 0)),
    ):
        lines.append(f"  {label:<32}{of('CPU'):>10g}{of('GPU'):>10g}")
    return "\n".join(lines)
