"""Signs of life of a process on another machine, whose clock may differ from this one's."""

from t2ir1_ray.storage import SILENCE_S


class Heart:
    """The heartbeat of a run's writer. `beats`: whether it goes on; None: nobody writes."""

    def __init__(self) -> None:
        self.beats: bool | None = None
        self._last: float | None = None
        self._since: float | None = None

    def feel(self, beat: float | None, now: float, wall: float) -> None:
        """beat: of `storage.heartbeat`; now, wall: this machine's monotonic clock and its time of day.

        The first time, only the two times of day can tell; later, whether the heartbeat has changed.
        """
        if beat is not None and beat != self._last:
            self._since = now - (max(0.0, wall - beat) if self._since is None else 0.0)
        self._last = beat
        self.beats = None if beat is None else now - (self._since or 0.0) < SILENCE_S


class Clock:
    """The driver's time of day, from the times in its lines, which are read a little later than they were written."""

    def __init__(self) -> None:
        self._ahead, self._fresh = 0.0, False

    def hear(self, at: float, wall: float, fresh: bool) -> None:
        """at: of the newest line; fresh: whether it has been written since the last look, which was a moment ago."""
        if fresh and not self._fresh:
            self._ahead, self._fresh = at - wall, True
        else:
            self._ahead = max(self._ahead, at - wall)

    def now(self, wall: float) -> float:
        return wall + self._ahead
