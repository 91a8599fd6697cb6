"""ExpertActor: hosts one expert of `rewards/` on its own device."""

import threading
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyarrow as pa

from actors.repeating import repeated
from actors.startup import take_device, uncollected
from rewards.base import ExpertScores, check_finite
from rewards.batched import BatchedExpert
from rewards.experts import load_expert
from t2ir1_ray.records.schema import Rollouts, Scores

PROBE = "probe"
"""The concurrency group of calls that do not queue behind others."""


class ExpertActor:
    """Scores images; keeps no state between calls, so a call can be repeated anywhere, and several run at a time."""

    def __init__(self, kind: str, path: str, dtype: str, batch_size: int, options: dict[str, Any], retries: int = 0):
        """retries: how often a call that raised is repeated."""
        self.retries = retries
        with uncollected():
            self.expert = load_expert(kind, path, device=take_device(), dtype=dtype, batch_size=batch_size, **options)
        # An expert from elsewhere need not know of threads.
        self.turn = nullcontext() if isinstance(self.expert, BatchedExpert) else threading.Lock()

    def score(self, rollouts: pa.RecordBatch, prompts: list[dict[str, Any]]) -> pa.RecordBatch:
        """`Scores` of a `Rollouts` batch. `prompts`: the prompt rows of its samples' prompts, by prompt_id."""
        samples = Rollouts.from_arrow(rollouts)
        by_id = {prompt["prompt_id"]: prompt for prompt in prompts}
        rows = [by_id[prompt_id] for prompt_id in samples.prompt_id]

        def score() -> ExpertScores:
            with self.turn:
                found = self.expert.score(samples.pixels, rows)
            check_finite(self.expert.name, found, rows)
            return found

        scores = repeated(self.retries, score)
        return Scores(np.asarray(scores.scores, np.float32), list(scores.status), list(scores.errors)).to_arrow()
