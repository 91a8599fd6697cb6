"""`python -m tests.chaos --minutes M --seed S`: random faults against the fault-free journal.

Shapes training with real Ray is run again and again while processes are killed at random moments: actors in mid-step,
the whole job (SIGKILL, SIGTERM), checkpoints damaged and journals torn while the job is dead. Every run is resumed
until it ends; its journal must then equal that of a run without faults, and no process or unfinished file may remain.
With `--whole RUN --go-on RUN` both exist: the first is what the second, which was left half done, must come to.
Prints a table of faults and of how many were survived; the exit code is 1 if any was not.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.journals import TIMED, metrics

STEPS = 10
OVERRIDES = [f"train.steps={STEPS}", "data.prompts_per_step=2", "eval.every=5", "eval.count=16", "journal.save_every=2"]
OVERRIDES += ["journal.images_every=0", "cluster.dashboard=false"]
ACTORS = ("RolloutActor", "ReferenceActor", "ExpertActor")
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
RUN_TIMEOUT_S = 600
UNCOMPARED = {"rollout/images_per_s", "actors/restarts"}


class Job:
    """One process of `t2ir1_ray.train` and all that it starts."""

    def __init__(self, run: Path, overrides: list[str]):
        begun = (run / "config.yaml").is_file()
        place = [f"journal.root={run.parent}", f"journal.name={run.name}"]
        arguments = ["--resume", str(run)] if begun else [*overrides, *place]
        self.run = run
        self.log = run.with_suffix(".log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "t2ir1_ray.train", *arguments], stdout=log, stderr=subprocess.STDOUT
            )
        self.family: dict[int, psutil.Process] = {}
        self.began = time.monotonic()

    def watch(self, seconds: float) -> bool:
        """Let it run; returns whether it still does. Remembers its descendants, which a dead parent cannot name."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            for child in self.actors():
                self.family[child.pid] = child
            time.sleep(0.1)
        return self.process.poll() is None

    def pause(self, rng: random.Random) -> bool:
        """Until a random moment of the start, or, more often, of the step after next; returns whether it still runs."""
        if time.monotonic() - self.began < 1 and rng.random() < 0.25:
            return self.watch(rng.uniform(0.5, 12))
        fewest = len(metrics(self.run))
        while self.watch(0.1):
            found = metrics(self.run)
            fewest = min(fewest, len(found))  # a resumed run first forgets what was behind its checkpoint
            if len(found) > fewest:
                return self.watch(rng.random() * found[-1].get("time/step_s", 1.0))
            if time.monotonic() - self.began > RUN_TIMEOUT_S:
                raise TimeoutError(f"{self.run}: no end after {RUN_TIMEOUT_S} s, see {self.log}")
        return False

    def actors(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def orphans(self) -> list[psutil.Process]:
        """Descendants that outlive the job, but for Ray's agents, which look for a killed raylet only every half minute
        and then end."""
        ours = [process for process in self.family.values() if not _title(process).startswith(AGENTS)]
        return psutil.wait_procs(ours, timeout=120)[1]


def journal(run: Path) -> list[dict[str, Any]]:
    """Without what differs from run to run."""
    return [{k: v for k, v in line.items() if not k.startswith(TIMED) and k not in UNCOMPARED} for line in metrics(run)]


def kill_actor(job: Job, rng: random.Random) -> str | None:
    """SIGKILL one running actor; returns its kind, or None if none has started yet."""
    name = rng.choice(ACTORS)
    running = [process for process in job.actors() if re.search(rf"ray::.*\b{name}\b", _title(process))]
    if not running:
        return None
    rng.choice(running).kill()
    return name


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) + ":"
    except psutil.Error:
        return ""


def flip_a_byte(run: Path, rng: random.Random) -> bool:
    """Damage a file of the newest checkpoint."""
    folders = sorted((run / "checkpoints").glob("step_*"))
    files = [file for file in folders[-1].rglob("*") if file.is_file() and file.stat().st_size] if folders else []
    if not files:
        return False
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return True


def tear_the_journal(run: Path, rng: random.Random) -> bool:
    """Cut the last line of the metrics in the middle, as a crash of the machine may do."""
    file = run / "metrics.jsonl"
    content = file.read_bytes() if file.is_file() else b""
    if not content:
        return False
    file.write_bytes(content[: -rng.randrange(1, min(60, len(content)))])
    return True


DAMAGE: dict[str, Callable[[Path, random.Random], bool]] = {
    "byte flipped in a checkpoint": flip_a_byte,
    "journal torn": tear_the_journal,
}


def disturbed(run: Path, rng: random.Random, kinds: list[str], overrides: list[str]) -> Counter[str]:
    """Run to the end under faults of the given kinds, one after another; returns what was done."""
    done: Counter[str] = Counter()
    left = list(kinds)
    while True:
        job = Job(run, overrides)
        while job.pause(rng):
            if not left:
                continue
            if left[0] == "actor":
                if name := kill_actor(job, rng):
                    done[f"SIGKILL of {name}"] += 1
                    left.pop(0)
                continue
            kind = left.pop(0)
            job.process.send_signal(signal.SIGKILL if kind == "job" else signal.SIGTERM)
            done[f"{'SIGKILL' if kind == 'job' else 'SIGTERM'} of the job"] += 1
            job.watch(60)
            break
        job.process.wait(timeout=60)
        if orphans := job.orphans():
            raise AssertionError(f"{run}: left behind: {[_title(process) for process in orphans]}")
        if job.process.returncode == 0:
            return done
        # 130: while the actors start. The last two: before that, from Python's and from Ray's handler.
        ended = (1, 130, -signal.SIGKILL, -signal.SIGTERM, signal.SIGTERM)
        if job.process.returncode not in ended or "Traceback" in job.log.read_text():
            raise AssertionError(f"{run}: exit code {job.process.returncode}, see {job.log}")
        for name, damage in DAMAGE.items():
            if rng.random() < 0.5 and damage(run, rng):
                done[name] += 1


def differences(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[str]:
    if len(left) != len(right):
        return [f"{len(left)} lines against {len(right)}"]
    return [
        f"step {a['step']} {key}: {a.get(key)} against {b.get(key)}"
        for a, b in zip(left, right, strict=True)
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="so long runs are begun, and until --faults faults")
    parser.add_argument("--config", default="shapes", help="a shipped name or a YAML file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=4, help="faults of one run")
    parser.add_argument(
        "--kinds", default="actor,job,term", help="of what is killed, comma-separated, each at least once"
    )
    parser.add_argument("--whole", type=Path, help="a run without faults, instead of one that is made first")
    parser.add_argument("--go-on", type=Path, help="one run that has been begun, instead of new ones")
    parser.add_argument("--staleness", type=int, default=0, help="train.max_staleness of async runs; 0: sync runs")
    options = parser.parse_args()
    mode = ["train.mode=async", f"train.max_staleness={options.staleness}"] if options.staleness else []
    overrides = ["--config", options.config, *OVERRIDES, *mode]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    deadline = time.monotonic() + 60 * options.minutes
    whole = options.whole or root / "whole"
    if not options.whole:
        disturbed(whole, random.Random(options.seed), [], overrides)
    expected = journal(whole)

    rng = random.Random(options.seed)  # anew: how much of it the run without faults uses depends on its speed
    injected: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    wrong: list[str] = []
    number = 0
    while injected.total() < options.faults or time.monotonic() < deadline:
        number += 1
        run = options.go_on or root / f"run-{number}"
        kinds = options.kinds.split(",")
        kinds = [*kinds, *rng.choices(kinds, k=max(0, options.faults - len(kinds)))][: options.faults]
        rng.shuffle(kinds)
        try:
            found = disturbed(run, rng, kinds, overrides)
            faults = [f"{run.name}: {text}" for text in differences(expected, journal(run))[:5]]
            faults += [f"{run.name}: left {path}" for path in (run / "checkpoints").glob(".*")]
        except (AssertionError, TimeoutError) as error:
            found, faults = Counter(dict.fromkeys(kinds, 1)), [str(error)]
        injected += found
        survived += Counter() if faults else found
        wrong += faults
        print(f"{run.name}: {found.total()} faults, {'; '.join(faults) or 'same journal'}", flush=True)
        if options.go_on:
            break

    table = Table("fault", "injected", "survived")
    for name, count in sorted(injected.items()):
        table.add_row(name, str(count), str(survived[name]))
    table.add_row("all", str(injected.total()), str(survived.total()))
    Console().print(table)
    print(json.dumps({"runs": number, "injected": injected.total(), "survived": survived.total(), "folder": str(root)}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
