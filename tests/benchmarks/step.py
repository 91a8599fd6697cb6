"""`python -m tests.benchmarks.step [--steps N] [--out FILE] [section.key=value ...]`: where a step's time goes.

Trains the shapes policy and prints one JSON object: the median seconds from one step's line in the journal to the next,
those of its phases, and the share of all steps in which no phase is under way: the driver's own work, the journal and
its pictures among it. The first two steps, in which caches fill, are left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PHASES = ("rollout", "score", "learn", "publish")
"""What follows one another in a sync step; loading is a part of publishing there."""
WARM = 2
TARGET = 0.05


def shares(steps: Sequence[float], lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`step_s`, `<phase>_s` and `outside_s`, medians, and `outside`, a share of all.

    steps: seconds of each, as a whole; lines: of metrics.jsonl, of the same steps.
    """
    outside = [took - sum(line[f"time/{phase}_s"] for phase in PHASES) for took, line in zip(steps, lines, strict=True)]
    phases = {phase: statistics.median(line[f"time/{phase}_s"] for line in lines) for phase in PHASES}
    medians = {"step": statistics.median(steps), **phases, "outside": statistics.median(outside)}
    found = {f"{name}_s": round(seconds, 4) for name, seconds in medians.items()}
    return found | {"outside": round(sum(outside) / sum(steps), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=22)
    parser.add_argument("--out", type=Path, help="also write the object to this file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        place = [f"journal.root={root}", "journal.name=run", f"train.steps={options.steps}"]
        command = [sys.executable, "-m", "t2ir1_ray.train", *place, "eval.every=0", *options.overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = _read(Path(root) / "run" / "metrics.jsonl")
        events = _read(Path(root) / "run" / "activity.jsonl")
    steps = [event["ms"] / 1000 for event in events if event["kind"] == "step"]
    settings = {"steps": options.steps - WARM, "overrides": options.overrides, "target_outside": TARGET}
    text = json.dumps(settings | shares(steps[WARM:], lines[WARM:]), indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
