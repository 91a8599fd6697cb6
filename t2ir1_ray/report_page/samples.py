"""The samples of a run that is being written, as messages to a page."""

from pathlib import Path

from t2ir1_ray.errors import UserError
from t2ir1_ray.report_page.dumps import read_dump
from t2ir1_ray.report_page.page import to_json
from t2ir1_ray.report_page.runs import dumps_in

AT_ONCE = 4
"""Dumps that are read in one look, so that the first samples are there soon."""


class Samples:
    """The newest dumps of a run that fit in `budget` bytes. `more`: there are others to read at once."""

    def __init__(self, folder: Path, budget: float):
        self.more = False
        self._folder, self._budget = folder, budget
        self._kept: dict[int, str] = {}  # step -> its message
        self._floor = -1  # neither this step's dump nor an older one fits
        self._bad: dict[int, tuple[int, str]] = {}  # step -> (time of change, what is wrong with the file)
        self._count = 0

    def messages(self) -> list[str]:
        """The newest first."""
        return [self._kept[step] for step in sorted(self._kept, reverse=True)]

    def forget_after(self, step: int) -> None:
        """The run makes these steps again."""
        self._kept = {known: message for known, message in self._kept.items() if known <= step}
        self._floor = min(self._floor, step)

    def look(self) -> tuple[list[str], list[int]]:
        """(messages of new dumps, steps whose samples have vanished or no longer fit)."""
        there = dumps_in(self._folder)
        self._count = len(there)
        self._bad = {step: bad for step, bad in self._bad.items() if _changed(there.get(step)) == bad[0]}
        before = set(self._kept)
        self._kept = {step: message for step, message in self._kept.items() if step in there}
        wanted = sorted(
            (s for s in there if s > self._floor and s not in self._kept and s not in self._bad), reverse=True
        )
        for step in wanted[:AT_ONCE]:
            self._read(step, there[step])
        self.more = any(step > self._floor for step in wanted[AT_ONCE:])
        fresh = [self._kept[step] for step in wanted[:AT_ONCE] if step in self._kept]
        return fresh, sorted(before - self._kept.keys())

    def notes(self) -> list[str]:
        """What is not shown, for a person."""
        left_out = self._count - len(self._kept) - len(self._bad)
        newest = f"Samples of the newest {len(self._kept)} of {self._count} dumped steps are kept: "
        newest += "a larger --max-mb keeps more."
        return [text for _, text in self._bad.values()] + ([newest] if left_out and self._floor >= 0 else [])

    def _read(self, step: int, path: Path) -> None:
        if step <= self._floor:
            return
        changed = _changed(path)
        try:
            self._kept[step] = to_json({"dump": step, "groups": read_dump(path)})
        except UserError as error:
            if changed is not None:  # otherwise the run has just removed it
                self._bad[step] = changed, str(error)
            return
        while sum(map(len, self._kept.values())) > self._budget:
            self._floor = max(self._floor, min(self._kept))
            del self._kept[min(self._kept)]


def _changed(path: Path | None) -> int | None:
    try:
        return path and path.stat().st_mtime_ns
    except OSError:
        return None
