"""`python -m tests.benchmarks.scale [--actors 1 2 4 ...] [--out FILE]`: how near to ideal is a run with many actors?

The real driver trains on a local Ray: real actors, Arrow records and object store, at the sizes of Janus-Pro-7B, groups
of 8 images of 384 x 384 and 576 tokens. Only the models are sleeps, drawn around what `fitting.step_time` says of an
H200; learner ranks and experts grow with the rollout actors unless they are given. Ideal is what `simulate` makes of
the same durations. One JSON object, with one entry per run:

- seconds from the start of all actors to the last step's metrics, and the ideal ones; efficiency: ideal over measured;
- phases: mean seconds of a step, measured and ideal; other: what the driver does between them;
- driver_cores, machine_cores: processor seconds per second of the driver, and of everything on this machine;
- driver_mb: private memory of the driver, means of ten equal parts of the run; store_gb: the most that was in the
  object store; spilled_bytes: what Ray has put on the disk because it was full.

--speed divides all sleeps, and nothing else: at 10 the driver does in a second what it has to do in ten.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import ray

from actors import spawning
from actors.placement import roles
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.fitting import step_time
from t2ir1_ray.fitting.memory import Shapes
from t2ir1_ray.fitting.prompts import training_prompts
from t2ir1_ray.fitting.published import published
from t2ir1_ray.records.prompts import step_rows
from t2ir1_ray.trainer import train
from tests.benchmarks.scale_actors import STAND_INS
from tests.benchmarks.scale_ideal import Blocks, Durations, Run, Step, simulate

CARD = step_time.CARDS[0]
PUBLISH = (1 / 13.0 + 1 / 23.5 + 1 / 60) / step_time.STORE_S_PER_GB
"""The learner's share of a version's way through the object store; see there."""
LOOK_S = 1.0


@dataclass(frozen=True)
class Case:
    """One run. experts, ranks, references: numbers of actors; 0: as many as suit the rollout actors."""

    actors: int
    mode: str = "sync"
    experts: int = 0
    ranks: int = 0
    references: int = 0
    prompts_per_actor: int = 4
    prompts_per_call: int = 4
    steps: int = 4
    speed: float = 1.0
    spread: float = 0.1
    seed: int = 0
    store_gb: float = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="rollout actors")
    parser.add_argument("--mode", nargs="+", choices=("sync", "async"), default=["sync", "async"])
    for name in ("experts", "ranks", "references", "prompts_per_actor", "prompts_per_call", "steps", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Case, name))
    parser.add_argument("--speed", type=float, default=Case.speed, help="divides every sleep")
    parser.add_argument("--spread", type=float, default=Case.spread, help="of the sleeps: standard deviation over mean")
    parser.add_argument("--store-gb", type=float, default=Case.store_gb, help="object store, in GiB")
    parser.add_argument("--out", type=Path, help="also write the object to this file")
    options = vars(parser.parse_args())
    out, actors, modes = (options.pop(name) for name in ("out", "actors", "mode"))
    found = []
    for mode in modes:
        for number in actors:
            found.append(in_child(suited(Case(number, mode, **options))))
            print(json.dumps(found[-1]), file=sys.stderr)
    text = json.dumps({"card": CARD.name, "runs": found}, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")


def suited(case: Case) -> Case:
    """With numbers for what is 0: experts' actors from 4 to 16, learner ranks up to 8, a reference for 16 actors."""
    return replace(
        case,
        experts=case.experts or min(16, max(4, case.actors // 2)),
        ranks=case.ranks or min(8, max(1, case.actors // 4)),
        references=case.references or max(1, case.actors // 16),
    )


def in_child(case: Case) -> dict[str, Any]:
    """`measure` in a process of its own: Ray and memory begin anew."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_speak_apart) as pool:
        return pool.submit(measure, case).result()


def _speak_apart() -> None:
    """What Ray and the run print goes to stderr: stdout is for the figures."""
    sys.stdout = sys.stderr


def measure(case: Case) -> dict[str, Any]:
    """Run a suited case in this process."""
    config = settings(case)
    seconds = Durations(means(case), case.spread, case.seed, case.speed)
    ideal = simulate(plan(config), seconds.of)
    for name, stand_in in STAND_INS.items():
        setattr(spawning, name, type(name, (stand_in,), {"durations": seconds}))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=int(case.store_gb * 2**30),
    )
    with tempfile.TemporaryDirectory(prefix="scale-") as root, Observer() as observer:
        run = Path(root) / "run"
        train(config, run)
        events = [json.loads(line) for line in (run / "activity.jsonl").read_text().splitlines()]
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ray.shutdown()
    begin = next(event["at"] for event in events if event["kind"] == "started")
    end = next(event["at"] for event in reversed(events) if event["kind"] == "step")
    return {
        **asdict(case),
        "groups_per_step": config.data.prompts_per_step,
        "ray_actors": sum(role.count for role in roles(config)),
        "seconds": round(end - begin, 2),
        "ideal_seconds": round(ideal[-1].end, 2),
        "efficiency": round(ideal[-1].end / (end - begin), 3),
        "phases": phases(metrics, ideal, config.train.mode == "sync", seconds.of("publish", 0)),
        **observer.figures(begin, end),
    }


def settings(case: Case) -> Config:
    """The embedded world's configuration with as many actors and prompts, and the 7B recipe's journal."""
    config = configuration.load(
        "shapes",
        [
            *sizes(case, scoring_replicas(case)),
            f"train.steps={case.steps}",
            f"train.mode={case.mode}",
            f"train.seed={case.seed}",
            "eval.every=0",
            "journal.dump_every=10",
            "journal.save_every=0",
            "journal.save_last=false",
            "cluster.dashboard=false",
        ],
    )
    for role in (config.learner, config.rollout, config.reference, *config.experts.values()):
        role.num_cpus = 0.01
    return config


def sizes(case: Case, replicas: dict[str, int]) -> list[str]:
    return [
        f"rollout.actors={case.actors}",
        f"rollout.prompts_per_call={case.prompts_per_call}",
        f"data.prompts_per_step={case.actors * case.prompts_per_actor}",
        f"learner.ranks={case.ranks}",
        f"reference.replicas={case.references}",
        *(f"experts.{name}.replicas={count}" for name, count in replicas.items()),
    ]


def expert_means() -> dict[str, float]:
    """Seconds of a group by expert."""
    config = configuration.load("janus_pro_7b")
    size = config.rollout.group_size
    return {name: step_time.expert_seconds(replace(e, replicas=1), size, CARD) for name, e in config.experts.items()}


def scoring_replicas(case: Case) -> dict[str, int]:
    """One actor for each expert, and each further one for the expert that has the most to do."""
    seconds = expert_means()
    found = dict.fromkeys(seconds, 1)
    for _ in range(case.experts - len(found)):
        found[max(found, key=lambda name: seconds[name] / found[name])] += 1
    return found


def means(case: Case) -> dict[str, float]:
    """Seconds of every kind of call, as `fitting.step_time` has them of Janus-Pro-7B on an H200."""
    config = configuration.load("janus_pro_7b", ["rollout.weight_transfer=object_store", *sizes(case, {})])
    shapes = Shapes.of(published(config.policy.path))
    way = step_time.publish_seconds(config, shapes)
    groups = config.data.prompts_per_step / config.reference.replicas
    return {
        "rollout": step_time.call_seconds(config, shapes, CARD),
        **{f"expert-{name}": seconds for name, seconds in expert_means().items()},
        "reference": step_time.reference_seconds(config, shapes, CARD) / groups,
        "learner": step_time.learn_seconds(config, shapes, CARD),
        "publish": PUBLISH * way,
        "load": (1 - PUBLISH) * way,
    }


def plan(config: Config) -> Run:
    """What the run of a configuration consists of."""
    ids = training_prompts(config)[0]["prompt_id"].to_pylist()
    count, each = config.data.prompts_per_step, config.rollout.prompts_per_call

    def blocks(step: int) -> Blocks:
        prompts = [ids[row] for row in step_rows(len(ids), count, config.train.seed, step)]
        return [prompts[i : i + each] for i in range(0, count, each)]

    ahead = config.train.max_staleness if config.train.mode == "async" else 0
    scorers = {role.name: role.count for role in roles(config) if role.name not in ("learner", "rollout")}
    return Run(config.train.steps, ahead, config.rollout.actors, config.learner.ranks, scorers, blocks)


def phases(metrics: list[dict[str, Any]], ideal: list[Step], sync: bool, begun: float) -> dict[str, list[float]]:
    """Phase -> [measured, ideal], mean seconds of a step. In sync mode publishing lasts until the version is loaded.

    begun: ideal seconds until step 1 was asked for, which also waits until version 0 is loaded.
    """
    found = {name: [_mean(line[f"time/{name}_s"] for line in metrics)] for name in ("rollout", "score", "learn")}
    for name in found:
        found[name].append(_mean(getattr(step, name) for step in ideal))
    found["publish"] = [
        _mean(line["time/publish_s"] for line in metrics),
        _mean(step.publish + (step.load if sync else 0.0) for step in ideal),
    ]
    if sync:
        whole = _mean(line["time/step_s"] for line in metrics), (ideal[-1].end - begun) / len(ideal)
        found["other"] = [all_of - sum(v[i] for v in found.values()) for i, all_of in enumerate(whole)]
    return {name: [round(value, 3) for value in values] for name, values in found.items()}


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


class Observer:
    """Looks at this process, the machine and Ray's object store every LOOK_S."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._rows: list[tuple[float, ...]] = []  # time, private MB, own and all processor s, bytes in store, spilled

    def figures(self, begin: float, end: float) -> dict[str, Any]:
        """Of the time between two moments (seconds since 1970)."""
        rows = np.array([row for row in self._rows if begin <= row[0] <= end] or self._rows[-1:])
        took = max(rows[-1, 0] - rows[0, 0], 1e-9)
        return {
            "driver_cores": round((rows[-1, 2] - rows[0, 2]) / took, 2),
            "machine_cores": round((rows[-1, 3] - rows[0, 3]) / took, 2),
            "driver_mb": [round(part[:, 1].mean()) for part in np.array_split(rows, min(10, len(rows)))],
            "store_gb": round(rows[:, 4].max() / 1e9, 2),
            "spilled_bytes": int(rows[-1, 5]),
        }

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_S):
            memory, own, machine = self._me.memory_info(), self._me.cpu_times(), psutil.cpu_times()
            busy = sum(machine) - machine.idle - machine.iowait
            used, spilled = store_bytes()
            private = (memory.rss - memory.shared) / 1e6
            self._rows.append((time.time(), private, own.user + own.system, busy, used, spilled))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def store_bytes() -> tuple[int, int]:
    """What is in this node's object store, and what it has put on the disk so far."""
    from ray._private.internal_api import node_stats  # the public state API needs the dashboard

    node = ray.nodes()[0]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats
    return stats.object_store_bytes_used, stats.spilled_bytes_total


if __name__ == "__main__":
    main()
