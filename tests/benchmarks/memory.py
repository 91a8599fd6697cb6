"""`python -m tests.benchmarks.memory RUN_ARGUMENTS...`: does memory stay flat over a long run?

Trains the shapes policy (by default 300 steps) in a process of its own and samples, every second, the resident memory
of each of its processes, private and shared (Ray's object store); prints the means of the first and the last 50 steps.
"""

import json
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
    """driver, rollout-0, learner-0, ...; None for Ray's own processes but the raylet, whose memory holds the store."""
    command = " ".join(process.cmdline())
    if command.startswith("ray::"):
        name = command.removeprefix("ray::").split(":")[0]
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
    table = Table("process", f"first {WINDOW} steps, MB", f"last {WINDOW} steps, MB", "store mapped, first", "last")
    result = {}
    for name, rows in sorted(samples.items()):
        values = np.array(rows)
        early = values[(values[:, 0] > 0) & (values[:, 0] <= WINDOW)]
        late = values[values[:, 0] > steps - WINDOW]
        if len(early) and len(late):
            figures = [early[:, 1].mean(), late[:, 1].mean(), early[:, 2].mean(), late[:, 2].mean()]
            result[name] = [round(float(figure), 1) for figure in figures]
            table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    Console().print(table)
    print(json.dumps({"steps": steps, "private_and_shared_mb": result}))
    sys.exit(job.returncode)


if __name__ == "__main__":
    main()
