"""`python -m tests.benchmarks.start [--runs N] [--out FILE]`: what it costs to start a run, by role. One JSON object.

The run is the shapes configuration with one step, without evaluation and dashboard. Of each actor class, in a plain
process of its own: processor and wall seconds of its imports, then of its constructor. Of the whole command: wall
seconds, and the processor seconds of every process that it starts, by kind of process (as last seen alive: the last
tenth of a second before a process is killed is missing).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

ROLES = ("driver", "learner", "rollout", "reference", "expert-hps", "expert-git", "expert-grounding_dino", "expert-orm")
KINDS = {
    "ray::LearnerActor": "learner",
    "ray::RolloutActor": "rollout",
    "ray::ReferenceActor": "reference",
    "ray::ExpertActor": "experts",
    "t2ir1_ray.train": "driver",
    "gcs_server": "Ray",
    "raylet": "Ray",
    "ray": "Ray",
}
"""What a command line holds -> kind of process; the first that fits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="the median is printed")
    parser.add_argument("--out", type=Path, help="also write the object to this file")
    parser.add_argument("--role", choices=ROLES, help="measure one role in this process (used by the command itself)")
    options = parser.parse_args()
    if options.role:
        print(json.dumps(measure_role(options.role)))
        return
    found = {
        "cores": os.cpu_count(),
        "roles": {role: _median([_in_child(role) for _ in range(options.runs)]) for role in ROLES},
        "run": _median([measure_run() for _ in range(options.runs)]),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure_role(role: str) -> dict[str, float]:
    """Seconds of the imports and of the constructor of one role, as `Cluster` calls it."""
    from t2ir1_ray import config as configuration

    config = configuration.load("shapes")
    clock = _Clock()
    if role == "driver":
        import t2ir1_ray.trainer  # noqa: F401

        return clock.lap("import")
    if role == "learner":
        from actors.learner import LearnerActor

        lap = clock.lap("import")
        LearnerActor(config.policy, config.learner, 0, 1, 1.0, 1.0, 1).join_ranks("127.0.0.1", 0, 600.0)
    elif role == "rollout":
        from actors.engine_environment import CPU_ENVIRONMENT, ENVIRONMENT

        os.environ.update(ENVIRONMENT | CPU_ENVIRONMENT)
        from actors.rollout import RolloutActor

        lap = clock.lap("import")
        RolloutActor(config.policy, config.rollout)
    elif role == "reference":
        from actors.reference import ReferenceActor

        lap = clock.lap("import")
        ReferenceActor(config.policy, config.reference.tokens_per_batch, 1.0, 1.0)
    else:
        from actors.expert import ExpertActor

        lap = clock.lap("import")
        expert = config.experts[role.removeprefix("expert-")]
        ExpertActor(expert.kind, expert.path, expert.dtype, expert.batch_size, expert.options)
    return lap | clock.lap("constructor")


def measure_run() -> dict[str, float]:
    """Seconds of a whole command with one step."""
    with tempfile.TemporaryDirectory() as root:
        settings = ["train.steps=1", "eval.every=0", "cluster.dashboard=false", f"journal.root={root}"]
        begin = time.perf_counter()
        seconds: dict[int, float] = {}
        kinds: dict[int, str] = {}
        with subprocess.Popen([sys.executable, "-m", "t2ir1_ray.train", *settings], stdout=subprocess.DEVNULL) as job:
            while job.poll() is None:
                for process in _family(job.pid):
                    try:
                        times = process.cpu_times()
                        seconds[process.pid] = times.user + times.system
                        kinds[process.pid] = _kind(process) or kinds.get(process.pid, "Ray")
                    except psutil.Error:
                        continue
                time.sleep(0.1)
        wall = time.perf_counter() - begin
        if job.returncode:
            raise SystemExit(f"the run ended with {job.returncode}")
    by_kind: dict[str, float] = defaultdict(float)
    for pid, used in seconds.items():
        by_kind[f"{kinds[pid]}, processor s"] += used
    return {"wall s": wall, "processor s": sum(seconds.values()), **by_kind}


class _Clock:
    """Processor and wall seconds of this process since the last lap."""

    def __init__(self) -> None:
        self._last = self._now()

    def lap(self, what: str) -> dict[str, float]:
        last, self._last = self._last, self._now()
        return {f"{what}, {unit} s": self._last[unit] - before for unit, before in last.items()}

    @staticmethod
    def _now() -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {"processor": used.ru_utime + used.ru_stime, "wall": time.perf_counter()}


def _in_child(role: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.start", "--role", role]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kind(process: psutil.Process) -> str | None:
    line = " ".join(process.cmdline())
    return next((kind for mark, kind in KINDS.items() if mark in line), None)


def _median(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(each.get(name, 0.0) for each in found), 2) for name in found[0]}


if __name__ == "__main__":
    main()
