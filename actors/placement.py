"""Where actors go: one atomic placement group with a bundle per actor, GPU fractions packed into whole-GPU bundles, and
learner ranks, which talk to each other all the time, in bundles of several: a bundle is always on one node."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.connect import joined_address
from t2ir1_ray.config import Config
from t2ir1_ray.errors import UserError

LOOK_S = 1.0
"""How often a cluster is looked at that is too small for a run, or full."""
LEARNER = "learner"


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
    frozen = Role("reference", reference.replicas, reference.num_cpus, reference.num_gpus)
    return [
        Role(LEARNER, learner.ranks, learner.num_cpus, learner.num_gpus),
        Role("rollout", rollout.actors, rollout.num_cpus, rollout.num_gpus),
        *([frozen] if learner.beta > 0 else []),
        *experts,
    ]


@dataclass(frozen=True)
class Plan:
    """Bundles of the placement group, and for every actor (role name, index) its bundle."""

    bundles: list[dict[str, float]]
    bundle_of: dict[tuple[str, int], int]


Room = tuple[float, float]
"""CPUs and GPUs of one node."""


def plan(wanted: Sequence[Role], together: int = 1) -> Plan:
    """First fit: whole GPUs and CPU-only actors get a bundle each, fractions share `{GPU: 1}` bundles.

    Fractions never straddle GPUs: without shared bundles eight actors of 0.75 GPU would leave eight useless quarters.
    together: learner ranks in one bundle, and so on one node.
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
            elif role.name == LEARNER and index % together:
                target = len(bundles) - 1
                bundles[target]["CPU"] += role.num_cpus
                bundles[target]["GPU"] += role.num_gpus
            else:
                target = len(bundles)
                bundles.append({"CPU": role.num_cpus, "GPU": float(role.num_gpus)})
            bundle_of[key] = target
    return Plan([{k: round(v, 4) for k, v in b.items() if v > 0} for b in bundles], bundle_of)


def homeless(bundles: Sequence[dict[str, float]], rooms: Sequence[Room]) -> dict[str, float] | None:
    """The first bundle, from the largest, that no node has room for beside the others; None: all can be placed."""
    left = [[cpus + 1e-6, gpus] for cpus, gpus in rooms]
    for bundle in sorted(bundles, key=lambda b: (-b.get("GPU", 0), -b.get("CPU", 0))):
        cpus, gpus = bundle.get("CPU", 0), bundle.get("GPU", 0)
        room = next((free for free in left if free[0] >= cpus and free[1] >= gpus), None)
        if room is None:
            return bundle
        room[0] -= cpus
        room[1] -= gpus
    return None


def fitting_plan(wanted: Sequence[Role], rooms: Sequence[Room]) -> Plan | None:
    """The plan with the fewest, equal groups of learner ranks that nodes have room for; None: there is no room."""
    return next((found for found in _plans(wanted) if homeless(found.bundles, rooms) is None), None)


def _plans(wanted: Sequence[Role]) -> Iterator[Plan]:
    ranks = sum(role.count for role in wanted if role.name == LEARNER) or 1
    sizes = dict.fromkeys(math.ceil(ranks / pieces) for pieces in range(1, ranks + 1))
    yield from (plan(wanted, together) for together in sizes)


@dataclass(frozen=True)
class Placement:
    """Reserved resources of a run."""

    group: PlacementGroup
    plan: Plan

    def options(self, role: Role, index: int) -> dict[str, object]:
        """Ray actor options that put the actor into its bundle."""
        strategy = PlacementGroupSchedulingStrategy(self.group, self.plan.bundle_of[role.name, index])
        return {"num_cpus": role.num_cpus, "num_gpus": role.num_gpus, "scheduling_strategy": strategy}

    def roles_by_node(self) -> dict[str, set[str]]:
        """Node id -> names of the roles that have an actor there."""
        node_of = placement_group_table(self.group)["bundles_to_node_id"]
        found: dict[str, set[str]] = {}
        for (role, _), bundle in self.plan.bundle_of.items():
            found.setdefault(node_of[bundle], set()).add(role)
        return found

    def release(self) -> None:
        remove_placement_group(self.group)


def reserve(config: Config, say: Callable[[str], None] = print) -> Placement:
    """Reserve everything that the run needs at once.

    Where a cluster was joined, nodes may still be on their way, or other work may hold them: it waits for
    `cluster.place_timeout_s` and says what is lacking. Its request is known to Ray from the beginning, so that an
    autoscaler acts on it. Raises UserError with a table if the cluster cannot hold the run.
    """
    wanted = roles(config)
    seconds = config.cluster.place_timeout_s
    deadline = time.monotonic() + seconds
    joined = joined_address(config.cluster) is not None
    reserved: Placement | None = None
    told = None
    while True:
        total, free = total_and_free()
        lacking = _lacking(wanted, total)
        if lacking and not joined:
            raise UserError(_table(wanted, lacking))
        layout = fitting_plan(wanted, free) or fitting_plan(wanted, total) or next(_plans(wanted))
        if reserved is None or (layout != reserved.plan and not reserved.group.wait(0)):
            if reserved:
                reserved.release()
            reserved = Placement(placement_group(layout.bundles, strategy="PACK", name="t2ir1_ray"), layout)
        if reserved.group.wait(max(0.0, min(LOOK_S, deadline - time.monotonic()))):
            return reserved
        if time.monotonic() >= deadline:
            reserved.release()
            raise UserError(_table(wanted, f"not placed within {seconds:g} s" + (f", {lacking}" if lacking else "")))
        state = lacking or "other work holds what the run needs"
        if state != told:
            say(f"resources: {state}: waiting, {seconds:g} s at most (cluster.place_timeout_s)")
            told = state


def total_and_free() -> tuple[list[Room], list[Room]]:
    """What every living node has, and what of it is free."""
    from ray._private.state import available_resources_per_node  # the public one knows only sums

    free = available_resources_per_node()
    nodes = [(node["Resources"], free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]
    total, left = ([(r.get("CPU", 0), r.get("GPU", 0)) for r in each] for each in zip(*nodes, strict=True))
    return total, left


def _lacking(wanted: Sequence[Role], rooms: Sequence[Room]) -> str | None:
    """What keeps these nodes from holding the run when nothing else runs there; None: nothing."""
    bundles = plan(wanted).bundles
    sums = {kind: math.fsum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU")}
    has = {"CPU": sum(cpus for cpus, _ in rooms), "GPU": sum(gpus for _, gpus in rooms)}
    few = [kind for kind in sums if sums[kind] > has[kind] + 1e-6]
    if few:
        return "the cluster has too few " + " and ".join(f"{kind}s ({has[kind]:g} of {sums[kind]:g})" for kind in few)
    one = homeless(bundles, rooms)
    return one and f"no node has {one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs left for one actor"


def _table(wanted: Sequence[Role], reason: str) -> str:
    """What was asked and what exists, one line per role."""
    total, free = ray.cluster_resources(), ray.available_resources()
    bundles = plan(wanted).bundles
    lines = [f"resources: {reason}: lower the numbers below in the configuration or add nodes"]
    lines.append(f"  {'role':<24}{'actors':>8}{'CPU each':>10}{'GPU each':>10}")
    lines += [f"  {role.name:<24}{role.count:>8}{role.num_cpus:>10g}{role.num_gpus:>10g}" for role in wanted]
    for label, of in (
        ("asked in total", lambda r: math.fsum(b.get(r, 0) for b in bundles)),
        ("cluster has", lambda r: total.get(r, 0)),
        ("of it free", lambda r: free.get(r, 0)),
    ):
        lines.append(f"  {label:<32}{of('CPU'):>10g}{of('GPU'):>10g}")
    return "\n".join(lines)
