"""Experience that was collected ahead of the learner, as files of a checkpoint.

An async run that goes on without it would sample those steps again, by a newer policy: other figures than before.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from actors.cluster import ScoredGroup, expert_scores
from t2ir1_ray.records.schema import Scores, group_from_arrow, group_to_arrow

FOLDER = "in_flight"
"""Subfolder of a checkpoint, with one Arrow stream per step and one batch per group in it."""


def write_step(
    folder: Path, step: int, groups: Sequence[ScoredGroup], replaced: int, probed: Mapping[str, float], made_by: str
) -> None:
    """groups: at least one, as they were scored; replaced, probed: see `Collected`; made_by: names settings and
    prompts."""
    file = folder / FOLDER / f"step_{step:06d}.arrow"
    file.parent.mkdir(exist_ok=True)
    batches = [_encode(group) for group in groups]
    about = {"replaced": str(replaced), "probed": json.dumps(dict(probed)), "made_by": made_by}
    schema = batches[0].schema.with_metadata(about)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_steps(folder: Path, made_by: str | None = None) -> dict[int, tuple[list[ScoredGroup], int, dict[str, float]]]:
    """What `write_step` left in a checkpoint: step -> (groups, replaced, probed).

    made_by: what was made otherwise is left out: a run that goes on with changed settings samples those steps again.
    """
    found = {}
    for file in sorted((folder / FOLDER).glob("step_*.arrow")):
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
            about = reader.schema.metadata
            if made_by in (None, about.get(b"made_by", b"").decode()):
                groups = [_decode(batch) for batch in reader]
                probed = json.loads(about.get(b"probed", b"{}"))
                found[int(file.stem.removeprefix("step_"))] = groups, int(about[b"replaced"]), probed
    return found


def _encode(group: ScoredGroup) -> pa.RecordBatch:
    scores = {name: Scores(s.scores, s.status, s.errors) for name, s in group.scores.items()}
    return group_to_arrow(group.prompt, group.rollouts, scores, group.reference)


def _decode(batch: pa.RecordBatch) -> ScoredGroup:
    prompt, rollouts, scores, reference = group_from_arrow(batch)
    return ScoredGroup(prompt, rollouts, {name: expert_scores(s) for name, s in scores.items()}, reference)
