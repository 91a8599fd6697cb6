"""Every expert at its published size with random weights: rate, memory, and what a narrower dtype changes.

The expert classes are the project's own, opened from the folders of a rehearsal, whose weights are drawn.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rewards.base import Expert
from rewards.experts import DTYPES, load_expert
from t2ir1_ray.errors import RunError
from t2ir1_ray.fitting.published import published_parameters
from t2ir1_ray.rehearsal.experts import WRITERS
from tests.gpu.measure import DEVICE, GB, clock, peak_gb
from tests.rewards import tiny_experts
from tests.rewards.tiny_experts import ROWS, WORDS, random_images

BATCH = 16


class Kind(NamedTuple):
    """An expert of the recipe: checkpoint, dtype, and the function that writes a tiny folder of it."""

    checkpoint: str
    dtype: str
    write_tiny: Callable[[Path], object]


def figures(tiny: bool) -> Iterator[dict[str, object]]:
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            kind.write_tiny(folder) if tiny else WRITERS[name](folder, 1.0, WORDS)
            try:
                opened = load_expert(name, str(folder), device=DEVICE.type, dtype=kind.dtype, batch_size=BATCH)
                for found in _measured(opened, kind, 3 if tiny else BATCH):
                    yield {"expert": name, **found}
            except Exception as error:  # of one expert: the others are measured all the same
                yield {"expert": name, "error": repr(error)[:500]}
        torch.cuda.empty_cache()


def _measured(expert: Expert, kind: Kind, count: int) -> Iterator[dict[str, object]]:
    images = random_images(count, 384, 384)
    rows = [ROWS[index % 3] for index in range(count)]
    model = expert.model
    yield {
        "dtype": kind.dtype,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "published_parameters": published_parameters(kind.checkpoint),
        "weights_GB": sum(parameter.nbytes for parameter in model.parameters()) / GB,
    }

    def rate(batch_size: int) -> float:
        expert.batch_size = batch_size
        return count / clock(lambda: expert.score(images, rows), repeats=2, warmup=1)

    single, batched = rate(1), rate(BATCH)
    peak = peak_gb(lambda: expert.score(images, rows))
    yield {"images_per_s_one_at_a_time": single, "images_per_s_batched": batched, "batch": count, "peak_GB": peak}
    scores = expert.score(images, rows).scores
    exact = model.state_dict() if kind.dtype == "float32" else None
    for other in (dtype for dtype in DTYPES if dtype != kind.dtype):
        expert.dtype = getattr(torch, other)
        model.to(expert.dtype)
        if exact:
            model.load_state_dict(exact)  # what the narrower dtype before has rounded away
        try:
            changed = expert.score(images, rows).scores
        except (RuntimeError, RunError) as error:  # which dtypes a model can take is a finding
            yield {"dtype": other, "refused": str(error)[:200]}
            continue
        apart = {"max_difference": float(np.abs(changed - scores).max()), "std": float(scores.std())}
        yield {"dtype": other, "images_per_s_batched": rate(BATCH), **apart}


KINDS = {
    "hps": Kind("hps_v2.1_compressed.pt", "float32", tiny_experts.write_open_clip_folder),
    "git": Kind("git-large-vqav2", "float32", tiny_experts.write_git_folder),
    "grounding_dino": Kind("grounding-dino-tiny", "float32", tiny_experts.write_grounding_dino_folder),
    "orm": Kind("orm-t2i-r1", "float16", tiny_experts.write_orm_folder),
}
