"""What every role did in a rehearsal, from what the run has written: its activity, its metrics, its trace."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ir1_ray.config import Config
from t2ir1_ray.doctor import expert_parameters, policy_shapes
from t2ir1_ray.fitting.inventory import GB
from t2ir1_ray.fitting.memory import RoleMemory, Shapes, estimate
from t2ir1_ray.journal import activity_log
from t2ir1_ray.journal.journal import METRICS

WORK = {"generate": "rollouts", "score": "scores", "logprobs": "scores", "step": "learning"}
"""Calls that go through all images of a step -> what others wait for meanwhile; all other calls are publishing."""
WAITS = ("rollouts", "scores", "learning", "publishing")
"""In the order in which a moment counts in which several of them go on."""

Span = tuple[float, float]


@dataclass(frozen=True)
class RoleReport:
    """A step of one role, in the mean. seconds: of calls to one actor; work: those that go through images."""

    role: str
    actors: int
    seconds: float
    work: float
    waited: dict[str, float]  # for what -> seconds of one actor


def report(config: Config, run: Path) -> str:
    """The table: every role's seconds, images, memory beside its estimate, bytes moved, and what it waited for."""
    lines = _lines(run / activity_log.FILE)
    started, first, *steps = (line for line in lines if line["kind"] in ("started", "step"))
    peaks = json.loads((run / "trace.json").read_text())["otherData"]["peak_gb"]
    version_gb = _lines(run / METRICS)[-1]["publish/bytes"] / GB
    shapes = policy_shapes(config)
    rows = estimate(config, shapes, expert_parameters(config))
    seconds = sum(line["ms"] for line in steps) / 1000 / len(steps)
    found = summarize([(line["lanes"], line["ms"]) for line in steps])
    table = [
        f"rehearsal: {seconds:.1f} s a step; the first one, which warms up, {first['ms'] / 1000:.1f}; until all actors "
        f"were up, {started['ms'] / 1000:.1f}",
        f"{'role':<24}{'actors':>7}{'s a step':>10}{'images/s':>10}{'peak GB':>9}{'estimate':>12}{'GB moved':>10}"
        "  waited for (s a step)",
    ]
    for row in rows:
        peak = max(gb for actor, gb in peaks.items() if role_of(actor) == row.role)
        moved = moved_gb(config, shapes, row, version_gb)
        table.append(_line(found[row.role], row, images_of(config), peak, moved))
    unit = "an actor, GB of its GPU" if any(row.gpus for row in rows) else "a process"
    return "\n".join([*table, f"images/s and GB of {unit}; estimate: for sure, and with the longest prompts and plans"])


def summarize(steps: Sequence[tuple[Mapping[str, Sequence[tuple[str, float, float]]], float]]) -> dict[str, RoleReport]:
    """Rows by role. steps: of each, (actor -> calls as (method, begin, end), the step's length), in milliseconds."""
    busy, work, actors = defaultdict(float), defaultdict(float), defaultdict(set)
    waited: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(WAITS, 0.0))
    for lanes, length in steps:
        going_on: dict[str, list[Span]] = {name: [] for name in WAITS}
        for calls in lanes.values():
            for method, begin, end in calls:
                going_on[WORK.get(method, "publishing")].append((begin, end))
        for actor, calls in lanes.items():
            role = role_of(actor)
            actors[role].add(actor)
            busy[role] += sum(end - begin for _, begin, end in calls)
            work[role] += sum(end - begin for method, begin, end in calls if method in WORK)
            idle = _without([(0.0, length)], [(begin, end) for _, begin, end in calls])
            for name in WAITS:
                left = _without(idle, going_on[name])
                waited[role][name] += _length(idle) - _length(left)
                idle = left
    found = {}
    for role, members in actors.items():
        each = 1000 * len(members) * len(steps)
        waits = {name: took / each for name, took in waited[role].items()}
        found[role] = RoleReport(role, len(members), busy[role] / each, work[role] / each, waits)
    return found


def role_of(actor: str) -> str:
    """`rollout 1` -> rollout, `expert hps 0` -> expert-hps: as roles are called where they are placed."""
    return actor.rpartition(" ")[0].replace("expert ", "expert-", 1)


def images_of(config: Config) -> int:
    return config.data.prompts_per_step * config.rollout.group_size


def moved_gb(config: Config, shapes: Shapes, row: RoleMemory, version_gb: float) -> float:
    """What goes to or from one actor in a step: a policy version, and the images that it makes or sees."""
    images = images_of(config) * 3 * shapes.image_side**2 / GB / row.actors
    versions = version_gb if row.role in ("learner", "rollout") else 0.0
    return versions + (images if row.role not in ("learner", "reference") else 0.0)


def _line(each: RoleReport, row: RoleMemory, images: int, peak_gb: float, moved: float) -> str:
    rate = images / each.actors / each.work if each.work else 0.0
    expected = f"{row.sure:.1f}" + (f"-{row.total:.1f}" if row.total > row.sure + 0.05 else "")
    waited = sorted(((took, name) for name, took in each.waited.items() if took >= 0.05), reverse=True)
    said = ", ".join(f"{name} {took:.1f}" for took, name in waited) or "nothing"
    return (
        f"{each.role:<24}{each.actors:>7}{each.seconds:>10.1f}{rate:>10.2f}{peak_gb:>9.1f}"
        f"{expected if row.known else '?':>12}{moved:>10.3f}  {said}"
    )


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _without(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """What of the spans lies in none of the others."""
    left = list(spans)
    for begin, end in others:
        pieces = [piece for a, b in left for piece in ((a, min(b, begin)), (max(a, end), b))]
        left = [(a, b) for a, b in pieces if a < b]
    return left


def _length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)
