"""What the terminal shows: one live line on a terminal, one plain line per step elsewhere."""

import sys
import time
from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

RECENT = 10
"""Steps from which the time left is judged: the first ones also warm up."""


class Progress:
    """Step, reward, held-out accuracy, time per phase and time left."""

    def __init__(self, steps: int, evaluate_every: int = 0):
        """evaluate_every: steps between evaluations, of which there is one more at the end; 0: there are none."""
        self._console = Console(file=sys.stdout, highlight=False)
        self._steps, self._every = steps, evaluate_every
        self._took: deque[float] = deque(maxlen=RECENT)
        self._evaluation = 0.0
        self._accuracy = ""
        self._bar = RichProgress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps)

    def begin(self, step: int) -> None:
        """Begin after `step`."""
        self._before = time.monotonic()
        self._bar.update(self._task, completed=step, description="starting actors")
        self._bar.start()

    def show(self, metrics: dict[str, Any]) -> None:
        """The latest step's figures."""
        step = metrics["step"]
        self._clock(step, metrics.get("time/heldout_s"))
        if "heldout/accuracy" in metrics:
            self._accuracy = (
                f" | held-out {metrics['heldout/accuracy']:.1%} (greedy {metrics['heldout/accuracy_greedy']:.1%})"
            )
            self.say(f"step {step}/{self._steps}{self._accuracy}")
        if step == 0:
            self._bar.update(self._task, description=f"first step{self._accuracy}")
            return
        seconds = {phase: metrics[f"time/{phase}_s"] for phase in ("rollout", "score", "learn", "publish")}
        phases = " ".join(f"{phase} {value:.1f}" for phase, value in seconds.items() if value is not None)
        line = f"reward {metrics['reward/mean']:.3f} kl {metrics['kl']:.4f}{self._accuracy} | s: {phases}"
        line += f" | ETA {self.seconds_left(step) / 60:.1f} min"
        self._bar.update(self._task, completed=step, description=line)
        if not self._console.is_terminal:
            print(f"step {step}/{self._steps} {line}", flush=True)

    def seconds_left(self, step: int) -> float:
        """What recent steps took, with everything beside them, times the steps left; and the evaluations to come."""
        left = self._steps - step
        evaluations = (self._steps // self._every - step // self._every) if self._every else 0
        evaluations += bool(self._every and left and self._steps % self._every)  # the one at the end
        return left * sum(self._took) / max(1, len(self._took)) + evaluations * self._evaluation

    def _clock(self, step: int, evaluation_s: float | None) -> None:
        now = time.monotonic()
        if step:
            self._took.append(now - self._before - (evaluation_s or 0.0))
        self._before, self._evaluation = now, evaluation_s or self._evaluation

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()
