"""How busy actors are, as their caller sees it: an actor works while calls to it are in flight."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Load:
    """Of one actor since the last figures: seconds with a call, and seconds of all calls added up."""

    calls: int = 0
    busy: float = 0.0
    in_flight: float = 0.0
    since: float = 0.0


class Usage:
    """Actors by the names that Ray's dashboard shows, `expert-hps-0`. Calls may end on any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._loads: dict[str, _Load] = {}
        self._lock = threading.Lock()
        self._taken = clock()

    def begin(self, actor: str) -> None:
        """A call is on its way to the actor."""
        self._change(actor, 1)

    def end(self, actor: str) -> None:
        """A call to the actor has ended."""
        self._change(actor, -1)

    def follow(self, actor: str, call: Any) -> None:
        """`begin` now, and `end` when the call has an answer or has failed, whenever that is fetched.

        call: a reference with an answer that is small, or that this process fetches anyway.
        """
        self.begin(actor)
        call.future().add_done_callback(lambda _: self.end(actor))

    def take(self) -> dict[str, float]:
        """`usage/busy/<actor>`, the share of the time since the last `take` in which it had a call, and
        `usage/queue/<role>`, how many calls stood behind another one of their actor, on average."""
        with self._lock:
            now = self._clock()
            seconds = max(now - self._taken, 1e-9)
            self._taken = now
            found: dict[str, float] = {}
            queues: dict[str, float] = defaultdict(float)
            for actor, load in self._loads.items():
                self._advance(load, now)
                found[f"usage/busy/{actor}"] = load.busy / seconds
                queues[f"usage/queue/{actor.rpartition('-')[0]}"] += (load.in_flight - load.busy) / seconds
                load.busy = load.in_flight = 0.0
        return found | queues

    def _change(self, actor: str, calls: int) -> None:
        with self._lock:
            now = self._clock()
            load = self._loads.setdefault(actor, _Load(since=now))
            self._advance(load, now)
            load.calls += calls

    def _advance(self, load: _Load, now: float) -> None:
        passed = now - load.since
        load.busy += passed * (load.calls > 0)
        load.in_flight += passed * load.calls
        load.since = now
