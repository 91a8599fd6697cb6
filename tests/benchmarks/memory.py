"""`python -m tests.benchmarks.memory RUN_ARGUMENTS...`: does memory stay flat over a long run?

Trains the shapes policy (by default 300 steps) in a process of its own and samples, every second, the resident memory
of each of its processes, private and shared (libraries and Ray's object store); prints means of every 50 steps.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

STEPS, WINDOW = 300, 50
DEFAULTS = [f"train.steps={STEPS}", "eval.every=0", "journal.save_every=50", "cluster.dashboard=false"]


def role(process: psutil.Process) -> str | None:
    """driver, RolloutActor, ExpertActor (all), ...; None for Ray's own but the raylet, which holds the store."""
    command = " ".join(process.cmdline())
    if command.startswith("ray::"):
        name = re.split(r"[.:\s]", command.removeprefix("ray::"))[0]  # RolloutActor.generate while it works
        return None if name == "IDLE" else name
    if "raylet/raylet" in command:
        return "raylet"
    return "driver" if "t2ir1_ray.train" in command else None


def main() -> None:
    root = Path(tempfile.mkdtemp(prefix="memory-"))
    arguments = [*DEFAULTS, *sys.argv[1:], f"journal.root={root}", "journal.name=run"]
    samples: dict[str, list[tuple[int, float, float]]] = defaultdict(list)  # role -> (step, RSS, shared) in MB
    metrics = root / "run" / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-m", "t2ir1_ray.train", *arguments], stdout=subprocess.DEVNULL) as job:
        driver = psutil.Process(job.pid)
        while job.poll() is None:
            step = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
            for process in [driver, *driver.children(recursive=True)]:
                try:
                    if name := role(process):
                        memory = process.memory_info()
                        samples[name].append((step, (memory.rss - memory.shared) / 1e6, memory.shared / 1e6))
                except psutil.Error:
                    continue
            time.sleep(1)
    steps = metrics.read_bytes().count(b"\n")
    starts = range(0, steps, WINDOW)
    table = Table("process", *(f"{start + 1}-{start + WINDOW}" for start in starts), "shared, first", "last")
    result = {}
    for name, rows in sorted(samples.items()):
        values = np.array(rows)
        windows = [values[(values[:, 0] > start) & (values[:, 0] <= start + WINDOW), 1:] for start in starts]
        if all(map(len, windows)):
            means = [window.mean(0).round(1).tolist() for window in windows]
            result[name] = {"private": [mean[0] for mean in means], "shared": [mean[1] for mean in means]}
            shown = (*result[name]["private"], result[name]["shared"][0], result[name]["shared"][-1])
            table.add_row(name, *map(str, shown))
    Console(width=120).print(table)
    print(json.dumps({"steps": steps, "window": WINDOW, "mb": result}))
    sys.exit(job.returncode)


if __name__ == "__main__":
    main()
