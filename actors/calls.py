"""Waiting for actors: every wait has a deadline and an error that names who was waited for, on what, since when."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from actors.activity import Activity
from t2ir1_ray.errors import RunError, UserError, reason, reason_in, shortened

PARTNERS_S = 10.0
"""When one of several calls has raised: how long its partners may take to turn out dead, which would be the cause."""
LOOK_S = 2.0
"""How often who waits looks after the actors, see `watch`."""


def numbered(name: str, refs: Sequence[Any]) -> dict[str, Any]:
    """The calls of equal actors by the actors' names: `name 0`, `name 1`, ..."""
    return {f"{name} {index}": ref for index, ref in enumerate(refs)}


def nobody() -> None:
    """Looks after no actor."""


def first_ready(
    refs: Sequence[Any], deadline: float, look: Callable[[], None] = nobody, **options: Any
) -> tuple[list[Any], list[Any]]:
    """`ray.wait` for the first of `refs` until `deadline` (of time.monotonic), then ([], refs).

    look: called every LOOK_S while none is ready; what it raises ends the wait.
    """
    while True:
        left = deadline - time.monotonic()
        done, others = ray.wait(refs, timeout=max(0.0, min(left, LOOK_S)), **options)
        if done or left <= LOOK_S:
            return done, others
        look()


def wait_for(ref: Any, who: str, what: str, timeout_s: float, look: Callable[[], None] = nobody) -> Any:
    """`ray.get` of one call. Raises RunError (UserError if the actor refused its input) in one line."""
    return wait_for_all({who: ref}, what, timeout_s, look)[0]


def wait_for_all(calls: Mapping[str, Any], what: str, timeout_s: float, look: Callable[[], None] = nobody) -> list[Any]:
    """The answers to `what`, asked of several actors: {who: reference}. The first failure ends the wait.

    Actors that work together fail together: one dies, and the others find their connection closed, or wait for it
    until the collective's own timeout. So a process that died is named rather than one that raised.
    Raises RunError (UserError if an actor refused its input) in one line.
    """
    since, deadline = time.strftime("%H:%M:%S"), time.monotonic() + timeout_s
    who = {ref: name for name, ref in calls.items()}
    answers: dict[str, Any] = {}
    failed: dict[str, RayError] = {}
    waiting = list(who)
    while waiting and not any(map(_is_death, failed.values())):
        done, waiting = first_ready(waiting, deadline, look)
        if not done:
            break
        name = who[done[0]]
        try:
            answers[name] = ray.get(done[0])
        except RayError as error:
            failed[name] = error
            deadline = min(deadline, time.monotonic() + PARTNERS_S)
    if failed:
        name = max(failed, key=lambda each: _is_death(failed[each]))
        raise explain(failed[name], name, what)
    if waiting:
        silent = ", ".join(who[ref] for ref in waiting)
        raise RunError(f"{silent}: no answer to {what} within {timeout_s:g} s (waited since {since})")
    return [answers[name] for name in calls]


def _is_death(error: RayError) -> bool:
    """Whether Ray reports that a process was lost, rather than an exception that it raised."""
    return not isinstance(error, RayTaskError)


def explain(error: RayError, who: str, what: str) -> UserError | RunError:
    """The one line that a person needs from a Ray error: with the innermost cause, wherever it was raised."""
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, UserError):
            return UserError(str(error.cause))
        if isinstance(error.cause, RunError):
            return RunError(f"{who}: {error.cause}")
        return RunError(f"{who}: {what} failed: {reason_in(str(error)) or reason(error.cause)}")
    said = reason_in(str(error))  # what a constructor has raised stands in the text of its actor's death only
    if said is None:
        death = isinstance(error, ActorDiedError)
        return RunError(
            f"{who}: died during {what} ({_told(error)})" if death else f"{who}: {what} failed: {_told(error)}"
        )
    kind, _, text = said.partition(": ")
    if kind == UserError.__name__:
        return UserError(text)
    return RunError(f"{who}: {text}" if kind == RunError.__name__ else f"{who}: {what} failed: {said}")


def _told(error: RayError) -> str:
    """What Ray says about a death, without the table of names and addresses."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    return shortened(" ".join(lines)) or type(error).__name__


class Pool:
    """Identical actors that share work: each call goes to the one with the fewest calls in flight. May be used on
    several threads."""

    activity: Activity | None = None
    """Is told about every call, if somebody wants to know."""

    def __init__(self, name: str, actors: Sequence[Any]):
        self.name = name
        self.actors = list(actors)
        self._busy = [0] * len(actors)
        self._holder: dict[Any, int] = {}
        self._lock = threading.Lock()

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Start `method` on the least busy actor; returns what `remote` returns."""
        with self._lock:
            index = min(range(len(self.actors)), key=self._busy.__getitem__)
            result = getattr(self.actors[index], method).options(**options).remote(*args)
            self._busy[index] += 1
            self._holder[result] = index
        if self.activity:
            self.activity.watch(self.who(result), method, result)
        return result

    def each(self, method: str, *args: Any) -> dict[str, Any]:
        """Start `method` on every actor; what `wait_for_all` takes."""
        calls = numbered(self.name, [getattr(actor, method).remote(*args) for actor in self.actors])
        if self.activity:
            self.activity.watch_all(calls, method)
        return calls

    def who(self, result: Any) -> str:
        """The actor that a call went to, as errors name it."""
        return f"{self.name} {self._holder[result]}"

    def done(self, result: Any) -> None:
        """Say that a call has ended, so that its actor counts as less busy."""
        with self._lock:
            self._busy[self._holder.pop(result)] -= 1
