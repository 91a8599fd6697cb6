"""Entropy control: each segment's entropy is held in a band around what it was at the start of the run.

RL sharpens a policy until it no longer explores, and now and then flattens it. The loss gets a term - c H with a weight
c for plans and one for images. Inside the band c fades; below it c rises and the term raises the entropy, above it c
falls below 0. The idea of an adaptive coefficient is that of Skywork-OR1 (arXiv 2505.22312), for text; the band, its
upper bound and one coefficient per segment are ours.

The entropy is that of the distribution whose log-probs are trained on, at the temperature of sampling: with
`learner.image_logprobs=guided` of the images as they were drawn, otherwise of the conditional one, whatever guidance
they were drawn with.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from learner.meter import SEGMENTS
from t2ir1_ray.storage import write_whole

FILE = "entropy.json"
"""In a checkpoint's folder."""
PACE = 0.1
"""Part of the way that c goes in a step towards what the distance from the band asks for."""


class EntropyControl:
    """Weights of the entropy term for the next step; equal on all ranks, for all measure the same entropies."""

    def __init__(self, band: tuple[float, float], most: float):
        """band: lowest and highest entropy, in units of the first; most: |c| where the entropy is off by that unit."""
        self.band, self.most = band, most
        self.start = dict.fromkeys(SEGMENTS, 0.0)
        """Entropies of the first step, in nats; 0 before, and of a segment that no batch had yet."""
        self.weights = dict.fromkeys(SEGMENTS, 0.0)

    def step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take in `entropy/<segment>` of a step that is done.

        Returns entropy_weight/<segment>, c in that step, and entropy_ratio/<segment>, its entropy in units of the
        first.
        """
        found = {}
        for segment in SEGMENTS:
            entropy = metrics[f"entropy/{segment}"]
            self.start[segment] = self.start[segment] or entropy
            ratio = entropy / self.start[segment] if self.start[segment] else 1.0
            found[f"entropy_weight/{segment}"] = self.weights[segment]
            found[f"entropy_ratio/{segment}"] = ratio
            low, high = self.band
            lacking = max(low - ratio, 0.0) - max(ratio - high, 0.0)
            aim = self.most * min(max(lacking, -1.0), 1.0)
            self.weights[segment] += PACE * (aim - self.weights[segment])
        return found

    def save(self, folder: Path) -> None:
        write_whole(folder / FILE, json.dumps({"start": self.start, "weights": self.weights}))

    def restore(self, folder: Path) -> None:
        """Exactly as saved. A checkpoint of a run without the band has nothing: its first step is then the start."""
        if (folder / FILE).is_file():
            state = json.loads((folder / FILE).read_text())
            self.start, self.weights = state["start"], state["weights"]
