"""A run folder that is being written, and what a page has to be told about it: everything once, then what is new.

A message is a JSON object; `follow.js` takes it in. Each of its keys may be there or not:

- `base`: the data of a page as in `page.py`, without samples; what the page knew before is void;
- `cut`: steps behind this one are void, for the run goes on from a checkpoint; then `steps` and `series` (metric ->
  values at these steps) continue what is left; `charts` replaces the charts;
- `tiles`: {keep: [from, to], add}: which of the known lanes stay, and what comes behind them; `now`: the present step;
- `dump`, `groups`: the samples of a step; `drop`: steps whose samples are void;
- `config`, `health`, `notes`: replaced as a whole; `clock`: the driver's, as far as it can be known from here.
"""

import time
from pathlib import Path
from typing import Any

from t2ir1_ray.errors import UserError
from t2ir1_ray.report_page.health import History
from t2ir1_ray.report_page.lanes import read_line
from t2ir1_ray.report_page.page import chart_data, run_data, to_json
from t2ir1_ray.report_page.runs import (
    ACTIVITY,
    CONFIG,
    METRICS,
    NOW,
    BySteps,
    Run,
    add_metrics,
    as_columns,
    check_folder,
    read_config,
)
from t2ir1_ray.report_page.samples import Samples
from t2ir1_ray.report_page.signs import Clock, Heart
from t2ir1_ray.report_page.tail import Tail, Whole
from t2ir1_ray.storage import heartbeat


class Follower:
    """One run folder. Each `look` reads what was appended, and the dumps that are new."""

    def __init__(self, folder: Path, max_mb: float):
        """max_mb: of samples that are kept (10^6 bytes), the newest ones. Raises UserError if there is no such run."""
        check_folder(folder)
        if not max_mb > 0:
            raise UserError(f"--max-mb={max_mb:g}: must be greater than 0")
        self.folder, self.name = folder, folder.resolve().name
        self.samples = Samples(folder, min(max_mb, 1e6) * 1e6)
        self._metrics, self._activity = Tail(folder / METRICS), Tail(folder / ACTIVITY)
        self._config_file, self._now_file = Whole(folder / CONFIG), Whole(folder / NOW)
        self._heart, self._clock = Heart(), Clock()
        self._by_step: BySteps = {}
        self._history = History()
        self._bad_config: list[str] = []
        self._bad_lines: list[str] = []
        self._looked = False
        self._now: dict[str, Any] | None = None
        self._replaced: dict[str, Any] = {"config": {}, "charts": [], "health": {}, "notes": []}

    def first(self) -> list[str]:
        """Everything that is known, as messages."""
        steps, series = as_columns(self._by_step, sorted(self._by_step))
        run = run_data(self.name, self._run(steps, series)) | {"now": self._now}
        base = {"runs": [run], "charts": self._replaced["charts"], "groups": []}
        clock = self._clock.now(time.time())
        return [to_json({"base": base, "notes": self._replaced["notes"], "clock": clock}), *self.samples.messages()]

    def look(self) -> list[str]:
        """What has happened since the last look, as messages."""
        told = self._look_at_config() | self._look_at_metrics() | self._look_at_activity()
        if "cut" in told:
            self.samples.forget_after(told["cut"])
        dumps, dropped = self.samples.look()
        told |= {"drop": dropped} if dropped else {}
        self._heart.feel(heartbeat(self.folder), time.monotonic(), time.time())
        health = run_data(self.name, self._run(sorted(self._by_step), {}))["health"]
        told |= self._changed("health", health) | self._changed(
            "notes", [*self._bad_config, *self._bad_lines[:3], *self.samples.notes()]
        )
        self._looked = True
        return ([to_json(told | {"clock": self._clock.now(time.time())})] if told else []) + dumps

    def _run(self, steps: list[int], series: dict[str, list[float | None]]) -> Run:
        return Run(self.name, steps, series, self._replaced["config"], {}, self._history, self._heart.beats)

    def _changed(self, key: str, value: Any) -> dict[str, Any]:
        if value == self._replaced[key]:
            return {}
        self._replaced[key] = value
        return {key: value}

    def _look_at_config(self) -> dict[str, Any]:
        if not self._config_file.changed():
            return {}
        try:
            self._bad_config = []
            return self._changed("config", read_config(self.folder))
        except UserError as error:
            self._bad_config = [str(error)]
            return {}

    def _look_at_metrics(self) -> dict[str, Any]:
        anew, lines = self._metrics.read()
        if not anew and not lines:
            return {}
        before, self._by_step = self._by_step, {} if anew else dict(self._by_step)
        self._bad_lines = [] if anew else self._bad_lines
        for number, line in enumerate(lines, self._metrics.lines - len(lines) + 1):
            try:
                add_metrics(self._by_step, [line], self._metrics.path, number)
            except UserError as error:
                self._bad_lines.append(str(error))
        keys = dict.fromkeys(key for values in self._by_step.values() for key in values)
        return difference(before, self._by_step) | self._changed("charts", chart_data(keys))

    def _look_at_activity(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        anew, lines = self._activity.read()
        if anew or lines:
            before, self._history = list(self._history.tiles), History() if anew else self._history
            self._history.add(lines)
            self._hear(read_line(lines[-1], drawn=False) if lines else None)
            after = self._history.tiles
            kept = [place for place, tile in enumerate(before) if any(tile is other for other in after)]
            keep = [kept[0], kept[-1] + 1] if kept else [0, 0]
            told["tiles"] = {"keep": keep, "add": after[len(kept) :]}
        if self._now_file.changed():
            line = read_line(self._now_file.content) if self._now_file.content else None
            self._hear(line)
            told["now"] = self._now = line and line["tile"] | {"at": line["at"]}
        return told

    def _hear(self, line: dict[str, Any] | None) -> None:
        if line:
            self._clock.hear(line["at"], time.time(), fresh=self._looked)


def difference(before: BySteps, after: BySteps) -> dict[str, Any]:
    """`cut` (-1: nothing is left), `steps` and `series` that make one from the other."""
    steps = sorted(after)
    known = 0
    for old, new in zip(sorted(before), steps, strict=False):
        if old != new or before[old] != after[new]:
            break
        known += 1
    cut = {"cut": steps[known - 1] if known else -1} if known < len(before) else {}
    fresh, series = as_columns(after, steps[known:])
    return cut | {"steps": fresh, "series": series}
