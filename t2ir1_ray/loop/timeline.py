"""Wall-clock seconds of the phases of every step, on several threads; also as a Chrome trace."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from t2ir1_ray.storage import write_whole

PHASES = ("rollout", "score", "learn", "step")
"""Phases that go through all images of a step, and the step as a whole."""


def throughput(
    images: int, sampled: float, tokens: float, seconds: Mapping[str, float | None], gpus: float
) -> dict[str, float | None]:
    """Of one step, per second: `throughput/<phase>_images`, images while that phase lasts; `throughput/gpu_images`,
    images of the whole step per GPU of the run (one without GPUs counts as one); `throughput/rollout_tokens`, those of
    plans and images that were `sampled`; `throughput/learn_tokens`. And `throughput/<phase>_image_ms`, milliseconds of
    the phase for each image.

    seconds: `time/<phase>_s`; None for a phase that came with a checkpoint, as is then its throughput. gpus: of all
    actors.
    """
    took = {phase: seconds[f"time/{phase}_s"] for phase in PHASES}
    found = {f"throughput/{phase}_images": images / took[phase] if took[phase] else None for phase in PHASES}
    for phase in PHASES:
        found[f"throughput/{phase}_image_ms"] = 1e3 * took[phase] / images if took[phase] else None
    found["throughput/gpu_images"] = images / took["step"] / max(gpus, 1.0)
    found["throughput/rollout_tokens"] = sampled / took["rollout"] if took["rollout"] else None
    found["throughput/learn_tokens"] = tokens / seconds["time/learn_s"]
    return found


class _Event(NamedTuple):
    phase: str
    step: int
    thread: str
    begin: float  # seconds since the timeline began
    end: float


class Timeline:
    """Phases as they end. `with timeline("learn", step): ...` may run on any thread."""

    def __init__(self) -> None:
        self._origin = time.perf_counter()
        self._events: list[_Event] = []

    @contextmanager
    def __call__(self, phase: str, step: int) -> Iterator[None]:
        begin = time.perf_counter() - self._origin
        yield
        end = time.perf_counter() - self._origin
        self._events.append(_Event(phase, step, threading.current_thread().name, begin, end))

    def seconds(self, step: int) -> dict[str, float | None]:
        """`time/<phase>_s` of a step's phases so far; None for the collecting of a step that came with a checkpoint."""
        found: dict[str, float] = defaultdict(float)
        for event in self._events:
            if event.step == step:
                found[f"time/{event.phase}_s"] += event.end - event.begin
        return {f"time/{phase}_s": None for phase in ("rollout", "score")} | found

    def write(self, path: Path, peaks: Mapping[str, float]) -> None:
        """All phases in the trace event format that chrome://tracing and ui.perfetto.dev open.

        peaks: actor -> GB that it held at most; the trace has them as `peak_gb` in otherData.
        """
        events = [
            {
                "name": event.phase,
                "ph": "X",
                "ts": 1e6 * event.begin,
                "dur": 1e6 * (event.end - event.begin),
                "pid": 0,
                "tid": event.thread,
                "args": {"step": event.step},
            }
            for event in self._events
        ]
        write_whole(path, json.dumps({"traceEvents": events, "otherData": {"peak_gb": dict(peaks)}}))
