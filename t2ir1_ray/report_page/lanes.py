"""Lanes: what every actor of a run did in each step, and whom the others waited for, from lines of activity.jsonl."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

STAGES = {"rollout": 0, "expert": 1, "reference": 1, "learner": 2}
"""The order of the loop. Who is idle waits for those who are busy in the earliest stage."""
PLURAL = ("rollouts", "experts", "learners")
DRIVER = "driver"
"""What is waited for while no actor is busy: it assembles, writes, and begins the next step."""
NAMES = {"__ray_ready__": "start"}
"""Of methods that a person has not to know."""
MOST_ACTORS, MOST_SPANS, MOST_PIECES, MOST_WAITS = 512, 64, 60, 3
TEXT = 100

Lanes = Mapping[str, Sequence[tuple[str, int, int]]]
"""Actor -> (method, begin, end) in ms, in order, without overlaps."""
Front = list[tuple[str, int, int]]


def read_line(line: bytes, drawn: bool = True) -> dict[str, Any] | None:
    """A line of activity.jsonl or now.json: `kind, at, step, text`, and `steps, left_s, tile` where it has them.

    drawn: whether its tile is wanted. None: this is not what the journal writes.
    """
    try:
        found = json.loads(line)
        kind, at, step = found["kind"], found["at"], found.get("step", 0)
        if not isinstance(kind, str) or not _is_number(at) or type(step) is not int or not 0 <= step < 1e9:
            return None
        text = found.get("text", "")
        said = {"kind": kind, "at": at, "step": step, "text": text if isinstance(text, str) else ""}
        said |= {key: found[key] for key in ("steps", "left_s") if _is_number(found.get(key))}
        return said | ({"tile": _tile(found)} if drawn and "lanes" in found else {})
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None


def _tile(line: Mapping[str, Any]) -> dict[str, Any]:
    """What the page draws of one line: `kind, step, ms, lanes, restarts, at_work` as in the journal, and `front` and
    `waits` of these lanes."""
    if not _is_number(line["ms"]):
        raise ValueError
    length = max(1, int(line["ms"]))
    lanes = {
        str(who)[:TEXT]: _in_order(
            ((NAMES.get(what, str(what)[:TEXT]), int(b), int(e)) for what, b, e in spans[:MOST_SPANS]), length
        )
        for who, spans in list(line["lanes"].items())[:MOST_ACTORS]
    }
    lanes = dict(sorted(lanes.items(), key=lambda lane: (_stage(lane[0]), _natural(lane[0]))))
    restarts = {who: times for who, times in line.get("restarts", {}).items() if who in lanes and _is_number(times)}
    calls = {who: call for who, call in line.get("at_work", {}).items() if who in lanes and _is_number(call[1])}
    at_work = {who: (NAMES.get(call[0], str(call[0])[:TEXT]), call[1]) for who, call in calls.items()}
    pieces = front(lanes, length)
    tile = {
        "kind": line["kind"],
        "step": line["step"],
        "ms": length,
        "lanes": lanes,
        "restarts": restarts,
        "front": pieces,
    }
    return tile | {"waits": waits(lanes, pieces), "at_work": at_work}


def front(lanes: Lanes, length: int) -> Front:
    """Whom the loop waits for, from 0 to `length`: (one actor, several of a stage, or the driver; begin, end).

    At most MOST_PIECES, in each of which another one may have its turn for a shorter while.
    """
    changes = [(time, on, who) for who, spans in lanes.items() for _, b, e in spans for time, on in ((b, 1), (e, 0))]
    busy: list[set[str]] = [set() for _ in PLURAL]
    found: Front = []
    turns: Counter[str] = Counter()  # of the piece that is being made
    begin = since = 0
    for time, on, who in [*sorted(changes), (length, 0, "")]:
        turns[_holder(busy)] += time - since
        since = time
        if since - begin >= length / MOST_PIECES or (since == length > begin):
            _add(found, turns.most_common(1)[0][0], begin, since)
            begin = since
            turns.clear()
        stage = busy[_stage(who)]
        stage.add(who) if on else stage.discard(who)
    return found


def _holder(busy: Sequence[set[str]]) -> str:
    stage = next((stage for stage, some in enumerate(busy) if some), None)
    if stage is None:
        return DRIVER
    return next(iter(busy[stage])) if len(busy[stage]) == 1 else PLURAL[stage]


def _add(found: Front, who: str, begin: int, end: int) -> None:
    if found and found[-1][0] == who:
        begin = found.pop()[1]
    found.append((who, begin, end))


def waits(lanes: Lanes, pieces: Front) -> dict[str, list[tuple[str, int]]]:
    """Actor -> whom it waited for while it was idle and how long, in ms, the longest first, MOST_WAITS of them."""
    cuts = [0, *(end for _, _, end in pieces)]
    found = {}
    for who, spans in lanes.items():
        edges = [0, *(time for _, begin, end in spans for time in (begin, end))]
        done = np.cumsum([0, *(part for _, begin, end in spans for part in (0, end - begin))])
        idle = np.diff(cuts) - np.diff(np.interp(cuts, edges, done))
        waited: Counter[str] = Counter()
        for (holder, _, _), ms in zip(pieces, idle.round().astype(int).tolist(), strict=True):
            if ms > 0 and holder != who:
                waited[holder] += ms
        found[who] = waited.most_common(MOST_WAITS)
    return found


def _in_order(spans: Iterable[tuple[str, int, int]], length: int) -> list[tuple[str, int, int]]:
    """Inside 0..length, without overlaps."""
    found: list[tuple[str, int, int]] = []
    for what, begin, end in sorted(spans, key=lambda span: span[1]):
        begin, end = max(begin, found[-1][2] if found else 0), min(end, length)
        if end > begin:
            found.append((what, begin, end))
    return found


def _stage(who: str) -> int:
    return STAGES.get(who.split(" ")[0], 1)


def _natural(who: str) -> tuple[str, int]:
    name, _, number = who.rpartition(" ")
    return (name, int(number)) if number.isdecimal() else (who, 0)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12  # not NaN either
