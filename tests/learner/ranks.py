"""Learner ranks in processes of their own: `python -m tests.learner.ranks SPEC.json` runs one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from t2ir1_ray.config import LearnerConfig, PolicyConfig


def run_ranks(
    folder: Path, policy: Path, learner: dict[str, Any], batches: list[list[pa.RecordBatch]]
) -> tuple[list[list[dict[str, float]]], dict[str, torch.Tensor]]:
    """Train on `batches[step][rank]`; returns metrics[rank][step] and the trained parameters."""
    world = len(batches[0])
    folder.mkdir()
    for step, shards in enumerate(batches):
        for rank, shard in enumerate(shards):
            with (
                pa.OSFile(str(folder / f"{step}-{rank}.arrow"), "wb") as sink,
                pa.ipc.new_stream(sink, shard.schema) as writer,
            ):
                writer.write_batch(shard)
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(world):
        spec = {"folder": str(folder), "policy": str(policy), "learner": learner, "rank": rank, "world": world}
        file = folder / f"spec-{rank}.json"
        file.write_text(json.dumps({**spec, "steps": len(batches), "port": 29000 + os.getpid() % 2000}))
        processes.append(subprocess.Popen([sys.executable, "-m", "tests.learner.ranks", str(file)], env=environment))
    assert [process.wait(timeout=180) for process in processes] == [0] * world
    metrics = [json.loads((folder / f"metrics-{rank}.json").read_text()) for rank in range(world)]
    return metrics, torch.load(folder / "state.pt", weights_only=True)


def main(file: str) -> None:
    from learner.rank import LearnerRank

    spec = json.loads(Path(file).read_text())
    folder, number = Path(spec["folder"]), spec["rank"]
    config = LearnerConfig(**spec["learner"])
    rank = LearnerRank(PolicyConfig(path=spec["policy"]), config, number, spec["world"])
    rank.connect("127.0.0.1", spec["port"], timeout_s=60)
    metrics = []
    for step in range(spec["steps"]):
        with pa.OSFile(str(folder / f"{step}-{number}.arrow")) as source:
            metrics.append(rank.step(pa.ipc.open_stream(source).read_next_batch()))
    (folder / f"metrics-{number}.json").write_text(json.dumps(metrics))
    state = rank.trainable_state()
    if state is not None:
        torch.save(state, folder / "state.pt")


if __name__ == "__main__":
    main(sys.argv[1])
