"""Experience that was collected ahead of the learner, as files of a checkpoint.

An async run that goes on without it would sample those steps again, by a newer policy: other figures than before.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.cluster import ScoredGroup
from rewards.base import ExpertScores
from t2ir1_ray.schema import ReferenceLogprobs, Rollouts, Scores, nest, unnest

FOLDER = "in_flight"
"""Subfolder of a checkpoint, with one Arrow stream per step and one batch per group in it."""


def write_step(folder: Path, step: int, groups: Sequence[ScoredGroup], replaced: int) -> None:
    """groups: at least one, as they were scored; replaced: see `Collected`."""
    file = folder / FOLDER / f"step_{step:06d}.arrow"
    file.parent.mkdir(exist_ok=True)
    batches = [_encode(group) for group in groups]
    schema = batches[0].schema.with_metadata({"replaced": str(replaced)})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_steps(folder: Path) -> dict[int, tuple[list[ScoredGroup], int]]:
    """What `write_step` left in a checkpoint: step -> its arguments."""
    found = {}
    for file in sorted((folder / FOLDER).glob("step_*.arrow")):
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
            groups = [_decode(batch) for batch in reader]
            found[int(file.stem.removeprefix("step_"))] = groups, int(reader.schema.metadata[b"replaced"])
    return found


def _encode(group: ScoredGroup) -> pa.RecordBatch:
    """One row per sample: every record of the group side by side, and the prompt as JSON."""
    scores = {name: Scores(s.scores, s.status, s.errors).to_arrow() for name, s in group.scores.items()}
    parts = {"rollouts": group.rollouts.to_arrow()} | {f"score/{name}": batch for name, batch in scores.items()}
    if group.reference:
        parts["reference"] = group.reference.to_arrow()
    prompt = pa.array([json.dumps(group.prompt)] * len(group.rollouts))
    return nest(parts).append_column("prompt", prompt)


def _decode(batch: pa.RecordBatch) -> ScoredGroup:
    prompt = json.loads(batch["prompt"][0].as_py())
    parts = unnest(batch.drop_columns(["prompt"]))
    scores = {}
    for name, part in parts.items():
        if name.startswith("score/"):
            found = Scores.from_arrow(part)
            scores[name.removeprefix("score/")] = ExpertScores(np.asarray(found.score), found.status, found.error)
    reference = ReferenceLogprobs.from_arrow(parts["reference"]) if "reference" in parts else None
    return ScoredGroup(prompt, Rollouts.from_arrow(parts["rollouts"]), scores, reference)
