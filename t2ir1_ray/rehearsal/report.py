"""What every role did in a rehearsal, from the trace that the run has written."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2ir1_ray.config import Config
from t2ir1_ray.doctor import expert_parameters, policy_shapes
from t2ir1_ray.fitting.memory import RoleMemory, estimate

PHASES = {"rollout": "rollouts", "score": "scores", "learn": "learning", "publish": "publishing", "load": "publishing"}
"""Phases of the driver -> what is waited for while they last, in the order in which a moment counts."""

Span = tuple[float, float]


@dataclass
class Actor:
    """What one actor did, in seconds since the run began."""

    role: str
    peak_gb: float
    calls: list[tuple[Span, int, int]] = field(default_factory=list)  # when, images, bytes


@dataclass(frozen=True)
class RoleReport:
    """A step of one role, in the mean. seconds: of work of one actor; images: of one actor in a second of its work."""

    role: str
    actors: int
    seconds: float
    images_per_s: float
    peak_gb: float
    moved_gb: float
    waited: dict[str, float]  # for whom -> seconds of one actor


def report(config: Config, run: Path) -> str:
    """The table: every role's seconds, images, memory beside its estimate, bytes moved, and what it waited for."""
    driver, actors = read_trace(json.loads((run / "trace.json").read_text())["traceEvents"])
    ends = [max(end for _, end in driver["publish", step]) for step in (1, config.train.steps)]
    steps = config.train.steps - 1
    phases = {name: [span for key, spans in driver.items() if key[0] == name for span in spans] for name in PHASES}
    found = summarize(actors, phases, (ends[0], ends[1]), steps)
    shapes = policy_shapes(config)
    rows = {row.role: row for row in estimate(config, shapes, expert_parameters(config))}
    first = ends[0] - min(begin for begin, _ in driver["rollout", 1])
    lines = [f"rehearsal: {(ends[1] - ends[0]) / steps:.1f} s a step; the first one, which warms up, took {first:.1f}"]
    lines.append(
        f"{'role':<24}{'actors':>7}{'s a step':>10}{'images/s':>10}{'peak GB':>9}{'estimate':>12}{'GB moved':>10}"
        "  waited for (s a step)"
    )
    lines += [_line(each, rows[each.role]) for each in found]
    unit = "each GPU" if any(row.gpus for row in rows.values()) else "each process"
    return "\n".join([*lines, f"images/s and GB are those of {unit}; estimate: surely, and with the longest prompts"])


def read_trace(events: Iterable[dict[str, Any]]) -> tuple[dict[tuple[str, int], list[Span]], list[Actor]]:
    """(phase, step) -> when the driver was in it; and the actors."""
    driver: dict[tuple[str, int], list[Span]] = defaultdict(list)
    actors: dict[int, Actor] = {}
    for event in events:
        if event["ph"] == "M":
            name = event["args"]["name"].rsplit(" ", 1)[0].replace("expert ", "expert-")
            actors[event["pid"]] = Actor(name, event["args"]["peak_gb"])
            continue
        span = event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6
        if event["pid"]:
            actors[event["pid"]].calls.append((span, event["args"]["images"], event["args"]["bytes"]))
        else:
            driver[event["name"], event["args"]["step"]].append(span)
    return driver, list(actors.values())


def summarize(actors: Sequence[Actor], phases: dict[str, list[Span]], window: Span, steps: int) -> list[RoleReport]:
    """One row per role, of what lies in the window of so many steps."""
    roles: dict[str, list[Actor]] = defaultdict(list)
    for actor in actors:
        roles[actor.role].append(actor)
    found = []
    for role, members in roles.items():
        calls = [call for actor in members for call in actor.calls if _inside(call[0], window)]
        busy = sum(_length(_cut([call[0]], window)) for call in calls)
        drawing = sum(end - begin for (begin, end), images, _ in calls if images)
        waited: dict[str, float] = defaultdict(float)
        for actor in members:
            idle = _without([window], [span for span, _, _ in actor.calls])
            for phase, whom in PHASES.items():
                waited[whom] += sum(_length(_cut(idle, span)) for span in phases[phase]) / len(members) / steps
                idle = _without(idle, phases[phase])
        found.append(
            RoleReport(
                role,
                len(members),
                busy / len(members) / steps,
                sum(images for _, images, _ in calls) / drawing if drawing else 0.0,
                max(actor.peak_gb for actor in members),
                sum(moved for _, _, moved in calls) / len(members) / steps / 1e9,
                dict(waited),
            )
        )
    return found


def _line(each: RoleReport, row: RoleMemory) -> str:
    gpus = max(1.0, row.gpus)
    expected = f"{row.sure:.1f}" + (f"-{row.total:.1f}" if row.total > row.sure + 0.05 else "")
    waited = sorted(((took, whom) for whom, took in each.waited.items() if took >= 0.05), reverse=True)
    said = ", ".join(f"{whom} {took:.1f}" for took, whom in waited) or "nobody"
    return (
        f"{each.role:<24}{each.actors:>7}{each.seconds:>10.1f}{each.images_per_s / gpus:>10.2f}{each.peak_gb:>9.1f}"
        f"{expected if row.known else '?':>12}{each.moved_gb:>10.3f}  {said}"
    )


def _inside(span: Span, window: Span) -> bool:
    return span[0] < window[1] and span[1] > window[0]


def _cut(spans: Iterable[Span], window: Span) -> list[Span]:
    """What of the spans lies in the window."""
    cut = [(max(begin, window[0]), min(end, window[1])) for begin, end in spans]
    return [(begin, end) for begin, end in cut if begin < end]


def _without(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """What of the spans lies in none of the others."""
    left = list(spans)
    for begin, end in others:
        left = [*_cut(left, (float("-inf"), begin)), *_cut(left, (end, float("inf")))]
    return left


def _length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)
