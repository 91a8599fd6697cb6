"""What befell a run and what its actors did, for who watches it: `activity.jsonl` and `now.json` in its folder.

A line of activity.jsonl is an object with `kind` and `at` (seconds since 1970, of the driver's clock):

- `began` (step, steps): a process took the run up behind `step`, 0 for a new run, to go to `steps`;
- `started` (all actors are up), `step` (a step is in metrics.jsonl), `ended` (text: why; empty if the run is finished):
  these also tell of the `ms` milliseconds since the one before, by (step, lanes, restarts). lanes: actor -> [method,
  begin, end] in milliseconds of these; restarts: actor -> how often it was started again. A `step` has left_s, the
  seconds that the run still needs;
- `warning` (step, text), `checkpoint` (step).

Nothing is ever taken back: a run that goes on from a checkpoint `began` again behind an earlier step. now.json is the
line that is being made, with at_work: actor -> [method, milliseconds since when]. It is replaced every NOW_S while
something changes, and gone when the process has ended in order.
"""

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.activity import Activity, Look
from t2ir1_ray.storage import AppendedLines, disk_failure

FILE = "activity.jsonl"
NOW = "now.json"
NOW_S = 2.0


class ActivityLog:
    """The two files of a run, and a thread for the second one."""

    def __init__(self, run: Path, activity: Activity, step: int, steps: int):
        """The run goes on behind `step`."""
        self._activity, self.step = activity, step
        self._now = run / NOW
        _mend(run / FILE)
        self._lines = AppendedLines(run / FILE)
        self.event("began", step=step, steps=steps)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_now, name="activity", daemon=True)
        self._thread.start()

    def event(self, kind: str, **facts: Any) -> None:
        """A line without lanes."""
        self._append(kind=kind, at=round(self._activity.now(), 3), **facts)

    def lanes(self, kind: str, step: int, **facts: Any) -> None:
        """A line with what the actors did since the last one."""
        self.step = step
        self._append(kind=kind, step=step, **_told(self._activity.take()), **facts)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._lines.close()
        with suppress(OSError):
            self._now.unlink(missing_ok=True)

    def _append(self, **line: Any) -> None:
        self._lines.append(_json(line))

    def _keep_now(self) -> None:
        seen, aside = None, self._now.with_name(f".{NOW}.partial")
        while not self._stopped.wait(NOW_S):
            if seen == (seen := (self.step, self._activity.changes)):
                continue
            look = self._activity.look()
            at_work = {who: [call.what, round(1e3 * (look.end - call.begin))] for who, call in look.at_work.items()}
            with suppress(OSError):  # a disk that is full or away: the next step tells
                aside.write_text(_json({"kind": "now", "step": self.step, **_told(look), "at_work": at_work}))
                aside.replace(self._now)


def _told(look: Look) -> dict[str, Any]:
    def ms(time: float) -> int:
        return round(1e3 * (time - look.begin))

    lanes = {who: [[span.what, ms(span.begin), ms(span.end)] for span in spans] for who, spans in look.lanes.items()}
    return {"at": round(look.end, 3), "ms": ms(look.end), "lanes": lanes, "restarts": look.restarts}


def _json(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"))


def _mend(file: Path) -> None:
    """Take back a last line that a killed process has torn."""
    with disk_failure(file):
        content = file.read_bytes() if file.is_file() else b""
        if not content.endswith(b"\n") and content:
            os.truncate(file, content.rfind(b"\n") + 1)
