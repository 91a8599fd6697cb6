"""What the terminal shows: one live line on a terminal, one plain line per step elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Step, reward, held-out accuracy, time per phase and time left."""

    def __init__(self, steps: int):
        self._console = Console(file=sys.stdout, highlight=False)
        self._steps = steps
        self._accuracy = ""
        self._bar = RichProgress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps)

    def begin(self, step: int) -> None:
        """Begin after `step`."""
        self._first, self._started = step, time.monotonic()
        self._bar.update(self._task, completed=step, description="starting actors")
        self._bar.start()

    def show(self, metrics: dict[str, Any]) -> None:
        """The latest step's figures."""
        step = metrics["step"]
        if "heldout/accuracy" in metrics:
            self._accuracy = (
                f" | held-out {metrics['heldout/accuracy']:.1%} (greedy {metrics['heldout/accuracy_greedy']:.1%})"
            )
            self.say(f"step {step}/{self._steps}{self._accuracy}")
        if step == 0:
            self._bar.update(self._task, description=f"first step{self._accuracy}")
            return
        phases = " ".join(f"{p} {metrics[f'time/{p}_s']:.1f}" for p in ("rollout", "score", "learn", "publish"))
        line = f"reward {metrics['reward/mean']:.3f} kl {metrics['kl']:.4f}{self._accuracy} | s: {phases}"
        self._bar.update(self._task, completed=step, description=line)
        if not self._console.is_terminal:
            left = (time.monotonic() - self._started) / (step - self._first) * (self._steps - step)
            print(f"step {step}/{self._steps} {line} | ETA {left / 60:.1f} min", flush=True)

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()
