"""How many nodes of which size a configuration needs: arithmetic on its roles and the doctor's memory table.

GB are 1e9 bytes. What no formula knows is an allowance, named here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actors.placement import Role, fitting_plan, plan, roles
from deploy.hardware import Machine
from t2ir1_ray.config import Config
from t2ir1_ray.doctor import expert_parameters, policy_shapes
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting.capacity import SLACK, gpu_needs, images_gb, run_size, store_gb
from t2ir1_ray.fitting.inventory import GB
from t2ir1_ray.fitting.memory import PROCESS_GB, RoleMemory, Shapes, estimate

GPUS_PER_NODE = 8
PROCESS_ON_GPU_GB = 4.0
"""Of the host's memory: a process with CUDA's libraries, and what it pins."""
RAY_GB, RAY_CPUS = 3.0, 1
"""Of a node: raylet, agents and logs' tails; on the head GCS and dashboard."""
HOST_SLACK = 1.25
CPUS_PER_GPU_ACTOR = 2
SHM_EXTRA_GB = 2.0
"""/dev/shm beside the object store: NCCL and torch keep buffers there."""
SYSTEM_GB = 60
"""Of a node's disk: operating system and container image."""
LOGS_GB = 10


@dataclass(frozen=True)
class Unit:
    """Actors that share a node. host_gb: of its memory, without the object store."""

    actors: tuple[tuple[str, int], ...]  # (role, how many)
    cpus: int
    gpus: int
    host_gb: float


@dataclass(frozen=True)
class Needs:
    """All that a configuration asks of a cluster."""

    roles: tuple[Role, ...]
    units: tuple[Unit, ...]
    gpu_gb: float  # of the fullest GPU, with the longest prompts and plans
    fullest: str  # who is on it
    store_gb: int  # object store of a node that works
    head_store_gb: int
    head_gb: float  # of the head's memory, without the object store
    models_gb: int
    runs_gb: int
    unknown: tuple[str, ...]  # experts whose checkpoints could not be measured


@dataclass(frozen=True)
class Group:
    """`count` equal nodes. Sizes are of one of them; memory_gb holds shm_gb, which holds store_gb."""

    name: str
    count: int
    actors: str
    cpus: int
    gpus: int
    memory_gb: int
    store_gb: int
    shm_gb: int
    disk_gb: int  # of the machine's own: system, image, and scratch_gb
    scratch_gb: int  # Ray's temporary folder: logs, and a store that spills


def needs(config: Config) -> Needs:
    """Raises UserError where the policy is not here to be measured."""
    shapes = policy_shapes(config)
    if shapes is None:
        path = config.policy.path
        raise UserError(f"policy.path={path}: not here to be measured: run this where it lies, or name it Janus-Pro-7B")
    parameters = expert_parameters(config)
    rows = {row.role: row for row in estimate(config, shapes, parameters)}
    gpus = {names: total for names, (_, total) in gpu_needs(config, list(rows.values())).items()}
    fullest = max(gpus, key=gpus.get, default=())
    run = run_size(config, shapes)
    whole = shapes.language + shapes.generation + shapes.understanding + shapes.vq
    models = (2 * whole + 4 * sum(count or 0 for count in parameters.values())) / GB  # experts' files: mostly float32
    return Needs(
        roles=tuple(roles(config)),
        units=tuple(_units(config, rows, shapes)),
        gpu_gb=gpus.get(fullest, 0.0),
        fullest=" + ".join(fullest),
        store_gb=math.ceil(max(1.5 * store_gb(config, shapes), 1)),
        head_store_gb=math.ceil(max(4 * images_gb(config, shapes), 1)),
        head_gb=HOST_SLACK * (RAY_GB + PROCESS_GB + 10 * images_gb(config, shapes)),
        models_gb=_tens(1.2 * models),
        runs_gb=_tens(1.2 * (run.checkpoints * run.checkpoint_gb + run.dumps_gb)),
        unknown=tuple(row.role for row in rows.values() if not row.known),
    )


def head(of: Needs) -> Group:
    """The node of the driver, GCS and dashboard; no actor is placed on it."""
    return _group("head", 1, "driver", 4, 0, of.head_gb, of.head_store_gb)


def pods(of: Needs) -> list[Group]:
    """A group per size of unit, for where nodes can be cut to measure. Names are DNS labels."""
    groups = []
    for unit, count in Counter(of.units).items():
        role = unit.actors[0][0]
        name = role if role in ("learner", "rollout") else "experts"
        name += f"-{n}" if (n := 1 + sum(group.name.partition("-")[0] == name for group in groups)) > 1 else ""
        groups.append(
            _group(name, count, _said(unit.actors), unit.cpus + RAY_CPUS, unit.gpus, unit.host_gb + RAY_GB, of.store_gb)
        )
    return groups


def containers(of: Needs) -> list[Group]:
    """Two on one machine, for trying: the learner, and everything else."""
    halves = [[unit for unit in of.units if (unit.actors[0][0] == "learner") == learner] for learner in (True, False)]
    return [
        _group(
            name,
            1,
            _said(actor for unit in half for actor in unit.actors),
            sum(unit.cpus for unit in half) + RAY_CPUS,
            sum(unit.gpus for unit in half),
            sum(unit.host_gb for unit in half) + RAY_GB,
            of.store_gb,
        )
        for name, half in zip(("learner", "others"), halves, strict=True)
    ]


def machines(of: Needs, catalogue: Sequence[Machine], where: str, gpu: str | None = None) -> tuple[Machine, Group]:
    """Equal machines for everything: the first GPU of the catalogue that is large enough, on as few as possible.

    gpu: take this one. Raises UserError where nothing holds the configuration.
    """
    wanted = any(unit.gpus for unit in of.units)
    offered = [m for m in catalogue if bool(m.gpus) == wanted and (gpu is None or not m.gpu or m.gpu.name == gpu)]
    if not offered:
        names = ", ".join(dict.fromkeys(m.gpu.name for m in catalogue if m.gpu))
        raise UserError(f"--gpu {gpu}: {where} offers {names}")
    largest = max(offered, key=lambda m: m.gpu.gb if m.gpu else 0)
    large = [m for m in offered if not m.gpu or m.gpu.gb * (1 - SLACK) >= of.gpu_gb]
    if not large:
        raise UserError(
            f"memory: a GPU with {of.fullest} needs {of.gpu_gb:.0f} GB, of {where}'s GPUs {largest.gpu.name} has "
            f"{largest.gpu.gb:.0f}: raise learner.ranks with zero_stage=3, let fewer share one (num_gpus), or set --gpu"
        )
    found = [(machine, count) for machine in large if (count := _count(of, machine))]
    if not found:
        unit = max(of.units, key=lambda u: (u.gpus, u.host_gb))
        raise UserError(
            f"placement: {_said(unit.actors)} take {unit.gpus} GPUs, {unit.cpus} CPUs and {unit.host_gb:.0f} GB of one "
            f"node: no machine of {where} has them: lower num_gpus, num_cpus or learner.ranks"
        )
    first = found[0][0].gpu
    machine, count = min(
        ((m, n) for m, n in found if m.gpu is first), key=lambda pair: (pair[1] * (pair[0].gpus or 1), pair[1])
    )
    actors = _said(actor for unit in of.units for actor in unit.actors)
    cpus = int(machine.cpus) if math.isfinite(machine.cpus) else _most_cpus(of.units, machine.gpus) + RAY_CPUS
    host = RAY_GB + max(sum(unit.host_gb for unit in node) for node in _fill(of, machine))
    return machine, _group("workers", count, actors, cpus, machine.gpus, host, of.store_gb)


def _units(config: Config, rows: dict[str, RoleMemory], shapes: Shapes) -> Iterable[Unit]:
    """Learner ranks that fit on one node stay together; else what shares a bundle. Actors without a GPU that neither
    learn nor roll out share one node."""
    layout, by_name = plan(roles(config)), {role.name: role for role in roles(config)}
    together = math.ceil(
        config.learner.ranks / math.ceil(config.learner.ranks / GPUS_PER_NODE)
    )  # as placement groups them
    shared: dict[tuple[str, int], list[str]] = {}
    for (name, index), bundle in layout.bundle_of.items():
        role = by_name[name]
        if name == "learner":
            key = name, index // together
        elif name == "rollout" or role.num_gpus:
            key = "bundle", bundle
        else:
            key = "on CPUs", 0
        shared.setdefault(key, []).append(name)
    for names in shared.values():
        count = Counter(names)
        cpus = sum(n * _cpus(by_name[name].num_cpus, by_name[name].num_gpus) for name, n in count.items())
        gpus = math.ceil(sum(n * by_name[name].num_gpus for name, n in count.items()) - 1e-9)
        if gpus > GPUS_PER_NODE:
            raise UserError(f"placement: {_said(count.items())} take {gpus} GPUs of one node: lower num_gpus")
        host = HOST_SLACK * sum(n * _host_gb(rows[name], config, shapes) for name, n in count.items())
        yield Unit(tuple(count.items()), math.ceil(cpus), gpus, round(host, 1))


def _cpus(num_cpus: float, num_gpus: float) -> float:
    return max(num_cpus, CPUS_PER_GPU_ACTOR if num_gpus else num_cpus)


def _host_gb(row: RoleMemory, config: Config, shapes: Shapes) -> float:
    """Of one actor: on a CPU what the table says; on a GPU its process and the weights, which pass through the host's
    memory when they are loaded. A learner rank loads the whole policy before ZeRO cuts it."""
    if not row.gpus:
        return row.total
    if row.role == "learner":
        whole = shapes.language + shapes.generation + shapes.understanding + shapes.vq
        return PROCESS_ON_GPU_GB + (4 if config.learner.dtype == "float32" else 2) * whole / GB
    return PROCESS_ON_GPU_GB + sum(part.gb for part in row.parts if part.name == "weights")


def _count(of: Needs, machine: Machine) -> int:
    """How many machines it takes: of memory, and of CPUs and GPUs as placement groups actors; 0: one fits on none."""
    least = len(_fill(of, machine))
    rooms = [(machine.cpus, machine.gpus)]
    return next((n for n in range(least, 2 * least + 1) if n and fitting_plan(of.roles, rooms * n)), 0)


def _fill(of: Needs, machine: Machine) -> list[list[Unit]]:
    """What comes onto each of the machines that hold all units, first fit, largest first; none if one fits on none."""
    rest = of.store_gb + SHM_EXTRA_GB + RAY_GB
    room = machine.cpus - RAY_CPUS, machine.gpus, machine.memory_gb - rest
    nodes: list[list[Unit]] = []

    def fits(units: list[Unit]) -> bool:
        taken = zip(*((unit.cpus, unit.gpus, unit.host_gb) for unit in units), strict=True)
        return all(sum(each) <= there for each, there in zip(taken, room, strict=True))

    for unit in sorted(of.units, key=lambda u: (-u.gpus, -u.host_gb, -u.cpus)):
        node = next((node for node in nodes if fits([*node, unit])), None)
        if node is not None:
            node.append(unit)
        elif fits([unit]):
            nodes.append([unit])
        else:
            return []
    return nodes


def _most_cpus(units: Sequence[Unit], gpus: int) -> int:
    """Of a node with so many GPUs, whichever of the units Ray puts onto it: at most."""
    cpus, left = 0.0, gpus
    for unit in sorted(units, key=lambda u: -u.cpus / max(u.gpus, 1)):
        share = min(1, left / unit.gpus) if unit.gpus else 1
        cpus, left = cpus + share * unit.cpus, left - share * unit.gpus
    return math.ceil(cpus)


def _group(name: str, count: int, actors: str, cpus: int, gpus: int, host_gb: float, store_gb: int) -> Group:
    shm = math.ceil(1.1 * store_gb + SHM_EXTRA_GB)
    scratch = _tens(LOGS_GB + store_gb)
    return Group(name, count, actors, cpus, gpus, math.ceil(host_gb + shm), store_gb, shm, SYSTEM_GB + scratch, scratch)


def _said(actors: Iterable[tuple[str, int]]) -> str:
    total: Counter[str] = Counter()
    for name, count in actors:
        total[name] += count
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in total.items())


def _tens(gb: float) -> int:
    return 10 * math.ceil(gb / 10)
