"""What an actor has done, from when to when, and the most memory that it held: for the trace of a run."""

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST = 100_000
"""Calls that are remembered, the latest."""


@dataclass
class Call:
    """begin, end: seconds since the epoch, by the clock of the actor's node. moved: bytes that came in and went out."""

    what: str
    begin: float
    end: float = 0.0
    images: int = 0
    moved: int = 0


@dataclass(frozen=True)
class Used:
    """peak_gb: of the GPU's memory as torch reserved it at most; without a GPU, of the process."""

    calls: list[Call]
    peak_gb: float


class Usage:
    """`with usage("score", images=8) as call: ...` in an actor's methods; `report` from its method `used`."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque(maxlen=MOST)

    @contextmanager
    def __call__(self, what: str, images: int = 0, moved: int = 0) -> Iterator[Call]:
        """What raises leaves no record."""
        call = Call(what, time.time(), images=images, moved=moved)
        yield call
        call.end = time.time()
        self._calls.append(call)

    def report(self) -> Used:
        return Used(list(self._calls), _peak_gb())


def _peak_gb() -> float:
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
