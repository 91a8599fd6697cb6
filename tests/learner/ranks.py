"""Learner ranks in processes of their own: `python -m tests.learner.ranks SPEC.json` runs one through its scenarios.

One start of the processes serves many scenarios, for importing DeepSpeed takes longer than training a tiny Janus.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch

from t2ir1_ray.config import LearnerConfig, PolicyConfig
from t2ir1_ray.records.schema import LearnerBatch
from tests.ports import free_port


@dataclass(frozen=True)
class Scenario:
    """Train on the batches, one a step; `resume_after`: save then, and go on in a new learner that loads.

    `planned`: steps that the schedules of the learner before the resume were made for, if not `steps`; `changed`:
    settings that the resumed one has instead of those in `learner`. `sampled`: log-probs of sampling are those of a
    plain policy with the published weights, instead of the batch's; one rank. `slow_disk_s`: how much longer an export
    takes to write.
    """

    name: str
    steps: int
    learner: dict[str, Any]
    on_policy: bool = True
    guidance: float = 1.0
    resume_after: int | None = None
    planned: int | None = None
    changed: dict[str, Any] = field(default_factory=dict)
    first_shard: int | None = None  # samples of rank 0; the others share the rest equally
    sampled: bool = False
    slow_disk_s: float = 0.0


@dataclass(frozen=True)
class Result:
    metrics: list[list[dict[str, float]]] = field(default_factory=list)  # [rank][step]
    settings: dict[str, Any] = field(default_factory=dict)  # of rank 0's optimizer at the end
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    exported: Path = Path()
    saved: Path = Path()
    written: list[dict[str, int]] = field(default_factory=list)  # [rank]: its files in `saved`, and their bytes
    export_s: list[float] = field(default_factory=list)  # [rank]


def run_ranks(
    folder: Path, policy: Path, world: int, batches: list[LearnerBatch], scenarios: list[Scenario]
) -> dict[str, Result]:
    """Run the scenarios on `world` ranks. Raises AssertionError with the ranks' output if one fails."""
    for step, batch in enumerate(batches):
        _write(folder / f"{step}.arrow", batch.to_arrow())
    spec = {"policy": str(policy), "world": world, "scenarios": [asdict(scenario) for scenario in scenarios]}
    spec["batches"] = len(batches)
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "tests.learner.ranks", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank-{rank}.log" for rank in range(world)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT)
        for rank, log in enumerate(logs)
    ]
    codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0] * world, "\n".join(log.read_text()[-3000:] for log in logs)
    return {scenario.name: _result(folder / scenario.name, world) for scenario in scenarios}


def _result(folder: Path, world: int) -> Result:
    metrics = [json.loads((folder / f"metrics-{rank}.json").read_text()) for rank in range(world)]
    settings = json.loads((folder / "settings.json").read_text())
    written = [json.loads(file.read_text()) for file in sorted(folder.glob("written-*.json"))]
    export_s = [json.loads((folder / f"export-{rank}.json").read_text()) for rank in range(world)]
    state = torch.load(folder / "state.pt", weights_only=True)
    return Result(metrics, settings, state, folder / "exported", folder / "saved", written, export_s)


def _write(path: Path, batch: pa.RecordBatch) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _shard(batch: LearnerBatch, rank: int, world: int, first: int | None) -> pa.RecordBatch:
    if first is None:
        return batch.take(np.array_split(np.arange(len(batch)), world)[rank]).to_arrow()
    borders = [0, *np.linspace(first, len(batch), world, dtype=int)]
    return batch.take(range(borders[rank], borders[rank + 1])).to_arrow()


def _sampled(learner: Any, batch: LearnerBatch) -> LearnerBatch:
    """The batch as rollout actors would hand it over that had drawn these tokens from the published policy."""
    from learner.logprobs import score_rollouts
    from learner.packing import Sequences
    from t2ir1_ray.janus.policy import load_model

    model = load_model(learner.policy.path, learner.config.dtype)
    model.load_state_dict(learner.trainable_state(), strict=False)
    semantic, image = score_rollouts(model, Sequences.of(batch), 10_000)
    return replace(batch, semantic_logprobs=semantic, image_logprobs=image)


def _slowly(work: Callable[..., None], seconds: float) -> Callable[..., None]:
    def slow(*args: Any) -> None:
        time.sleep(seconds)
        work(*args)

    return slow


def _run(scenario: Scenario, folder: Path, policy: str, rank: int, world: int, batches: int) -> None:
    from learner import rank as rank_module
    from learner.rank import LearnerRank

    class Partitioning(LearnerRank):
        """ZeRO-3 leaves small parameters whole: here it must cut most of a tiny model's."""

        def _deepspeed_config(self, trained: int) -> dict[str, Any]:
            config = super()._deepspeed_config(trained)
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 100
            return config

    def connected(steps: int, settings: dict[str, Any]) -> Partitioning:
        config = LearnerConfig(**scenario.learner | settings)
        options = {"guidance": scenario.guidance, "steps": steps}
        learner = Partitioning(PolicyConfig(path=policy), config, rank, world, **options)
        learner.join_ranks(*_meeting_place(folder / "address.json", learner), timeout_s=60)
        return learner

    out = folder / scenario.name
    out.mkdir(exist_ok=True)
    learner = connected(scenario.planned or scenario.steps, {})
    metrics = []
    for step in range(scenario.steps):
        if step == scenario.resume_after:
            learner.save_state(out / "saved")
            (out / f"written-{rank}.json").write_text(json.dumps(learner.written(out / "saved")))
            learner = connected(scenario.steps, scenario.changed)
            learner.restore_state(out / "saved")
        with pa.OSFile(str(folder / f"{step % batches}.arrow")) as source:
            batch = LearnerBatch.from_arrow(pa.ipc.open_stream(source).read_next_batch())
        if scenario.sampled:
            batch = _sampled(learner, batch)
        metrics.append(learner.step(_shard(batch, rank, world, scenario.first_shard), on_policy=scenario.on_policy))
    (out / f"metrics-{rank}.json").write_text(json.dumps(metrics))
    begin = time.perf_counter()
    with mock.patch.object(rank_module, "save_policy", _slowly(rank_module.save_policy, scenario.slow_disk_s)):
        learner.export_policy(out / "exported")
    (out / f"export-{rank}.json").write_text(json.dumps(time.perf_counter() - begin))
    state = learner.trainable_state()
    if state is not None:
        torch.save(state, out / "state.pt")
        (group,) = learner.engine.optimizer.param_groups
        found = {key: group[key] for key in ("betas", "weight_decay")} | {"clip": learner.engine.optimizer.clip_grad}
        (out / "settings.json").write_text(json.dumps(found))


def _meeting_place(file: Path, learner: Any) -> tuple[str, int]:
    """Rank 0 names its address once, the others wait for the file."""
    if learner.rank == 0 and not file.exists():
        file.with_suffix(".tmp").write_text(json.dumps(("127.0.0.1", free_port())))
        file.with_suffix(".tmp").rename(file)
    while not file.exists():
        time.sleep(0.05)
    host, port = json.loads(file.read_text())
    return host, port


def main(folder: Path, rank: int) -> None:
    from t2ir1_ray.cpu_stack import register

    register()
    spec = json.loads((folder / "spec.json").read_text())
    for scenario in spec["scenarios"]:
        _run(Scenario(**scenario), folder, spec["policy"], rank, spec["world"], spec["batches"])
    # DeepSpeed's hooks keep every engine alive, and the engines Gloo's threads, also after destroy_process_group: where
    # those outlive the interpreter, C++ now and then calls std::terminate. Everything is on the disk: end at once.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
