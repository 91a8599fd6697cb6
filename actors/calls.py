"""Waiting for actors: every wait has a deadline and an error that names who was waited for, on what, since when."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from t2ir1_ray.errors import RunError, UserError


def wait_for(refs: Any, who: str, what: str, timeout_s: float) -> Any:
    """`ray.get` of one reference or a list. Raises RunError (UserError if the actor refused its input) in one line."""
    since = time.strftime("%H:%M:%S")
    try:
        return ray.get(refs, timeout=timeout_s)
    except GetTimeoutError:
        raise RunError(f"{who}: no answer to {what} within {timeout_s:g} s (waited since {since})") from None
    except RayError as error:
        raise explain(error, who, what) from None


def explain(error: RayError, who: str, what: str) -> UserError | RunError:
    """The one line that a person needs from a Ray error."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, UserError):
        return UserError(str(cause))
    if isinstance(cause, RunError):
        return RunError(f"{who}: {cause}")
    if isinstance(cause, RayActorError):
        lines = str(cause).strip().splitlines()
        return _initialisation_error(cause) or RunError(f"{who}: died during {what} ({lines[0][:200]})")
    text = " ".join(str(cause).split())[-400:]
    return RunError(f"{who}: {what} failed: {type(cause).__name__}: {text}")


def _initialisation_error(error: RayActorError) -> UserError | None:
    """An actor whose constructor refused its checkpoint reports that only in the text of its death."""
    marker = "t2ir1_ray.errors.UserError: "
    text = str(error)
    return UserError(text.split(marker, 1)[1].splitlines()[0]) if marker in text else None


def restarts_of(actor: Any) -> int:
    """How often Ray has started the actor again. From Ray's actor table: the public state API needs the dashboard."""
    from ray._private.state import actors

    return int(actors(actor._actor_id.hex())["NumRestarts"])


class Pool:
    """Identical actors that share work: each call goes to the one with the fewest calls in flight."""

    def __init__(self, name: str, actors: Sequence[Any]):
        self.name = name
        self.actors = list(actors)
        self._busy = [0] * len(actors)
        self._holder: dict[Any, int] = {}

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Start `method` on the least busy actor; returns what `remote` returns."""
        index = min(range(len(self.actors)), key=self._busy.__getitem__)
        result = getattr(self.actors[index], method).options(**options).remote(*args)
        self._busy[index] += 1
        self._holder[result] = index
        return result

    def done(self, result: Any) -> None:
        """Say that a call has ended, so that its actor counts as less busy."""
        self._busy[self._holder.pop(result)] -= 1
