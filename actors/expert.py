"""ExpertActor: hosts one expert of `rewards/` on its own device."""

from typing import Any

import numpy as np
import pyarrow as pa

from actors.repeating import repeated
from actors.startup import take_device, uncollected
from rewards.base import ExpertScores, check_finite
from rewards.experts import load_expert
from t2ir1_ray.records.schema import Rollouts, Scores


class ExpertActor:
    """Scores images; keeps no state between calls, so a call can be repeated anywhere."""

    def __init__(self, kind: str, path: str, dtype: str, batch_size: int, options: dict[str, Any], retries: int = 0):
        """retries: how often a call that raised is repeated."""
        self.retries = retries
        with uncollected():
            self.expert = load_expert(kind, path, device=take_device(), dtype=dtype, batch_size=batch_size, **options)

    def score(self, rollouts: pa.RecordBatch, prompts: list[dict[str, Any]]) -> pa.RecordBatch:
        """`Scores` of a `Rollouts` batch. `prompts`: the prompt rows of its samples' prompts, by prompt_id."""
        samples = Rollouts.from_arrow(rollouts)
        by_id = {prompt["prompt_id"]: prompt for prompt in prompts}
        rows = [by_id[prompt_id] for prompt_id in samples.prompt_id]

        def score() -> ExpertScores:
            found = self.expert.score(samples.pixels, rows)
            check_finite(self.expert.name, found, rows)
            return found

        scores = repeated(self.retries, score)
        return Scores(np.asarray(scores.scores, np.float32), list(scores.status), list(scores.errors)).to_arrow()
