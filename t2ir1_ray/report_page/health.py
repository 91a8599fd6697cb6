"""How a run is, in words: what it does, how long it will take, what is wrong, from activity.jsonl and its heartbeat."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from t2ir1_ray.report_page.lanes import read_line

MOST_TILES, MOST_WARNINGS = 240, 200
MOST_BYTES = 2_000_000
"""Of the JSON of all tiles."""


@dataclass
class History:
    """What activity.jsonl has told so far."""

    began: list[dict[str, Any]] = field(default_factory=list)  # a line for every process that has taken the run up
    phase: str = ""  # kind of the last line that tells how far the last process has come
    text: str = ""  # why it ended
    step: dict[str, Any] | None = None  # the last step's line
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    warnings: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_WARNINGS))
    tiles: list[dict[str, Any]] = field(default_factory=list)  # the newest, see `lanes`

    def add(self, lines: Sequence[bytes]) -> None:
        """Take in lines as they come; what is no line of a journal is left out."""
        for place, line in enumerate(lines, 1):
            found = read_line(line, drawn=place > len(lines) - MOST_TILES)
            if found:
                self._add(found)
        del self.tiles[:-MOST_TILES]
        sizes = accumulate(len(json.dumps(tile)) for tile in reversed(self.tiles))
        del self.tiles[: -max(1, sum(size <= MOST_BYTES for size in sizes))]

    def _add(self, line: dict[str, Any]) -> None:
        kind, step = line["kind"], line["step"]
        if kind == "began":
            self.began.append(line)
            self._forget_after(step)
        if kind in ("began", "started", "step", "ended"):
            self.phase, self.text = kind, line["text"]
        if kind == "step":
            self.step = line
        if kind == "checkpoint":
            self.checkpoints.append(line)
        if kind == "warning":
            self.warnings.append(line)
        if kind in ("step", "ended") and "tile" in line:
            self.tiles.append(line["tile"])

    def _forget_after(self, step: int) -> None:
        """What comes later will come again."""
        self.tiles = [tile for tile in self.tiles if tile["step"] <= step]
        self.warnings = deque((line for line in self.warnings if line["step"] <= step), MOST_WARNINGS)
        self.checkpoints = [line for line in self.checkpoints if line["step"] <= step]
        if self.step and self.step["step"] > step:
            self.step = None


def health(history: History, name: str, done: int | None, total: int | None, beats: bool | None) -> dict[str, Any]:
    """What the head of the page says. Times are those of the lines: seconds since 1970 of the driver's clock.

    done: the last step of metrics.jsonl; total: steps of the configuration, if known; beats: whether the run's process
    gives signs of life, None if none writes. `state` and `words` make a sentence.
    """
    step = history.step
    if history.began:
        total = int(history.began[-1].get("steps", total or 0)) or total
    state, words = _state(history, name, done, total, beats)
    resumed = [line["step"] for place, line in enumerate(history.began) if place or line["step"]]
    return {
        "state": state,
        "words": words,
        "resumed": resumed,
        "step_at": step["at"] if step else None,
        "left_s": step.get("left_s") if step and state == "training" and done != total else None,
        "checkpoint": [history.checkpoints[-1]["step"], history.checkpoints[-1]["at"]] if history.checkpoints else None,
        "warnings": [[line["step"], line["text"]] for line in history.warnings],
    }


def _state(history: History, name: str, done: int | None, total: int | None, beats: bool | None) -> tuple[str, str]:
    """One word, and what has to be said beside it."""
    so_far = f"step {done} of {total or 'unknown'}"
    if history.phase == "ended" and history.text:
        return "ended", history.text if done is None else f"after {so_far}: {history.text}"
    if history.phase == "ended" or (not beats and done is not None and done == total):
        return "finished", f"{done} of {total or done} steps"
    if beats is False:
        since = "it began" if done is None else so_far
        why = f"killed, frozen or cut off since {since}: --resume {name} goes on behind the last checkpoint"
        return "no sign of life", why
    if beats is None:
        begun = done is not None or history.began
        return ("ended", f"after {so_far}: no process trains it") if begun else ("waiting", "for the run to begin")
    if history.phase in ("", "began"):
        return "starting", f"its actors are brought up{f', to go on behind step {done}' if done else ''}"
    return "training", f"{so_far} is done" if done else "the first step is under way"
