"""Looking after actors while their answers are awaited: which one is down, since when, and what a run bears.

Ray starts a lost actor again where it finds room, and repeats its calls. Whoever waits for the answers only sees that
they do not come: for as long as the lost node is away.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray

from t2ir1_ray.errors import RunError

DEAD_S = 10.0
"""How long the answers of a dead actor may take to turn into Ray's own error, which says more."""


@dataclass(frozen=True)
class Down:
    """An actor that does not live at the moment."""

    begin: float  # time.monotonic()
    since: str
    told: str  # its state, as it was said
    loss: tuple[int, bool]  # which one this is, and whether the last: nobody may have looked between two


class Watch:
    """The actors of a run by the names that errors give them. `look` may be called by several threads."""

    def __init__(self, actors: Mapping[str, Any], timeout_s: float, most: int, say: Callable[[str], None]):
        """timeout_s: how long an actor may be down; most: how often it may die in a step; say: told when one is down,
        and when it is up again."""
        self._actors, self._timeout_s, self._most, self._say = dict(actors), timeout_s, most, say
        self._node: dict[str, tuple[str, str]] = {}  # where it lived last: id, address
        self.restarts: dict[str, int] = {}
        """How often each actor had been started again when it was looked at last."""
        self._before: dict[str, int] = {}  # the same, when the step began
        self._down: dict[str, Down] = {}
        self._lock = threading.Lock()

    @property
    def down(self) -> list[str]:
        """Who was down when it was looked at last."""
        return sorted(self._down)

    def look(self) -> None:
        """Raises RunError in one line for an actor that is down for too long or dies too often."""
        with self._lock:
            for who, entry in table_entries(self._actors).items():
                self.restarts[who] = int(entry["NumRestarts"])
                self._look_at(who, entry)
                if (deaths := self.restarts[who] - self._before.get(who, 0)) > self._most:
                    raise RunError(
                        f"{who}: died {deaths} times before a step was done, more often than reward.retries="
                        f"{self._most} allows: see its log in the dashboard, and dmesg on its node"
                    )

    def end_step(self) -> None:
        """Look, and count deaths anew from here on: over days, nodes come and go."""
        self.look()
        with self._lock:
            self._before = dict(self.restarts)

    def _look_at(self, who: str, entry: Mapping[str, Any]) -> None:
        state, now = entry["State"], time.monotonic()
        if state not in ("RESTARTING", "DEAD"):
            self._node[who] = entry["Address"]["NodeID"], entry["Address"]["IPAddress"]
            if back := self._down.pop(who, None):
                self._say(f"{who}: is up again, on node {self._node[who][1]}, after {now - back.begin:.0f} s")
            return
        found = f"{state}{self._cause(who)}"
        down = self._down.get(who)
        loss = entry["NumRestarts"], state == "DEAD"
        if down is None or down.loss != loss:
            down = self._down[who] = Down(now, time.strftime("%H:%M:%S"), "", loss)
        if state == "DEAD":
            if now - down.begin > DEAD_S:
                raise RunError(f"{who}: {found}, since {down.since}, and is not started again")
            return
        if found != down.told:
            self._say(f"{who}: {found}, since {down.since}: it is waited for, at most {self._timeout_s:g} s")
            self._down[who] = replace(down, told=found)
        if now - down.begin > self._timeout_s:
            raise RunError(
                f"{who}: {found}, since {down.since}, for longer than cluster.node_timeout_s={self._timeout_s:g}: "
                "bring its node back, or another one with room for it"
            )

    def _cause(self, who: str) -> str:
        """Of an actor that is down: is its node lost?"""
        node, address = self._node.get(who, ("", ""))
        lost = node and not any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
        return f" because its node {address} is lost" if lost else ""


def table_entries(actors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of actors by name, from Ray's actor table: the public state API needs the dashboard.

    The table of this job in one question: one for each actor takes a second for some hundreds of them.
    """
    from ray._private import state, worker

    table = state.actors(job_id=worker.global_worker.current_job_id)
    return {who: table[actor._actor_id.hex()] for who, actor in actors.items()}
