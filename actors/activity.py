"""Which actor works on what, as the driver sees it: from a call to its answer.

Nothing is asked of the actors: Ray tells the caller when an answer is there, so that a lane is true although the driver
may look at the answer later. What waits in an actor's queue begins when the call before it has ended.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import Any, NamedTuple

from ray import ObjectRefGenerator

MOST_SPANS = 16
"""Of one actor in one look: where there are more, those that are nearest to each other are told as one."""


class Span(NamedTuple):
    what: str  # the method
    begin: float
    end: float  # seconds since 1970


@dataclass(frozen=True)
class Look:
    """What the actors did between two moments (seconds since 1970)."""

    begin: float
    end: float
    lanes: dict[str, list[Span]]  # of every actor, in order, without overlaps, all inside begin..end
    at_work: dict[str, Span]  # actor -> the call that it is in at `end`, with that call's own beginning
    restarts: dict[str, int]  # actor -> how often it was started again, if it was


class Activity:
    """The calls of a run. May be used on several threads."""

    def __init__(self) -> None:
        self._origin = time.time() - time.perf_counter()  # a clock that is set meanwhile moves nothing
        self._lock = threading.Lock()
        self._numbers = count()
        self.changes = 0
        """Calls that have begun, and calls that have ended."""
        self._since = self.now()
        self._open: dict[int, tuple[str, str, float]] = {}  # in the order of the calls
        self._ended: dict[str, list[Span]] = {}  # of every actor that was ever called
        self._restarts: dict[str, int] = {}
        self._told: dict[str, int] = {}

    def watch(self, who: str, what: str, result: Any) -> None:
        """A call has been made: `what` `remote` gave for it, a reference to a small answer or a stream."""
        number = next(self._numbers)
        with self._lock:
            self._open[number] = who, what, self.now()
            self.changes += 1
            self._ended.setdefault(who, [])
        answer = result.completed() if isinstance(result, ObjectRefGenerator) else result
        answer.future().add_done_callback(partial(self._end, number))

    def watch_all(self, calls: Mapping[str, Any], what: str) -> None:
        """The same call has been made to several actors: {who: reference}."""
        for who, result in calls.items():
            self.watch(who, what, result)

    def note_restarts(self, restarts: dict[str, int]) -> None:
        """restarts: actor -> how often it has been started again so far."""
        with self._lock:
            self._restarts = restarts

    def now(self) -> float:
        """Seconds since 1970."""
        return self._origin + time.perf_counter()

    def look(self) -> Look:
        """Since the last `take`."""
        with self._lock:
            return self._look(self.now())

    def take(self) -> Look:
        """The same, and from now on only what comes later."""
        with self._lock:
            look = self._look(self.now())
            self._since = look.end
            self._ended = {who: [] for who in self._ended}
            self._told = self._restarts
            return look

    def usage(self) -> dict[str, float]:
        """Since the last `take`: `usage/busy/<actor>`, the share of the time with a call; `usage/idle/<role>`, that
        without, mean over actors; `usage/queue/<role>`, how many calls stood behind another one, on average."""
        with self._lock:
            now = self.now()
            seconds = max(now - self._since, 1e-9)
            lanes, calls = self._lanes(now), self._calls(now)
        found: dict[str, float] = {}
        queues: dict[str, float] = defaultdict(float)
        idle: dict[str, list[float]] = defaultdict(list)
        for who, spans in lanes.items():
            busy = sum(span.end - span.begin for span in spans) / seconds
            pending = sum(span.end - max(span.begin, self._since) for span in calls[who]) / seconds
            actor = who.replace(" ", "-")
            role = actor.rpartition("-")[0]
            found[f"usage/busy/{actor}"] = busy
            idle[role].append(1 - busy)
            queues[f"usage/queue/{role}"] += max(0.0, pending - busy)
        return found | queues | {f"usage/idle/{role}": sum(shares) / len(shares) for role, shares in idle.items()}

    def _end(self, number: int, _: Any) -> None:
        """Called by Ray, on its own thread."""
        with self._lock:
            who, what, begin = self._open.pop(number)
            self.changes += 1
            self._ended[who].append(Span(what, begin, self.now()))

    def _calls(self, now: float) -> dict[str, list[Span]]:
        """Every call from when it was made to its end, or to now."""
        calls = {who: list(spans) for who, spans in self._ended.items()}
        for who, what, begin in self._open.values():
            calls[who].append(Span(what, begin, now))
        return calls

    def _lanes(self, now: float) -> dict[str, list[Span]]:
        return {who: one_after_another(spans, self._since, now) for who, spans in self._calls(now).items()}

    def _look(self, now: float) -> Look:
        lanes = {who: at_most(spans, MOST_SPANS) for who, spans in self._lanes(now).items()}
        at_work: dict[str, Span] = {}
        free = {who: max((span.end for span in spans), default=0.0) for who, spans in self._ended.items()}
        for who, what, begin in self._open.values():
            at_work.setdefault(who, Span(what, max(begin, free[who]), now))
        restarts = {who: times - self._told.get(who, 0) for who, times in self._restarts.items()}
        return Look(self._since, now, lanes, at_work, {who: times for who, times in restarts.items() if times > 0})


def one_after_another(calls: Sequence[Span], begin: float, end: float) -> list[Span]:
    """What an actor did with its calls between two moments: one at a time, in the order in which they were made."""
    found: list[Span] = []
    for call in sorted(calls, key=lambda call: call.begin):
        since, until = max(call.begin, found[-1].end if found else begin), min(call.end, end)
        if until <= since:
            continue
        if found and found[-1].what == call.what and found[-1].end == since:
            since = found.pop().begin
        found.append(Span(call.what, since, until))
    return found


def at_most(spans: Sequence[Span], most: int) -> list[Span]:
    """The same time line in at most `most` spans, across the shortest gaps; a joined one has the name of its longest
    part."""
    gaps = sorted((b.begin - a.end, place) for place, (a, b) in enumerate(pairwise(spans), 1))
    cuts = sorted(place for _, place in gaps[max(0, len(gaps) - most + 1) :])
    parts = [spans[a:b] for a, b in pairwise([0, *cuts, len(spans)]) if b > a]
    return [Span(max(part, key=lambda s: s.end - s.begin).what, part[0].begin, part[-1].end) for part in parts]
