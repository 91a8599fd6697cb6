"""What the learner gets out of its devices: the operations that its model needs, over the time that they took."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import ray

from t2ir1_ray.config import Config
from t2ir1_ray.fitting.memory import Shapes
from t2ir1_ray.fitting.nodes import card_of
from t2ir1_ray.fitting.step_time import card_named, image_rows, pass_flop, trunk_passes
from t2ir1_ray.janus.policy import load_config
from t2ir1_ray.records.schema import LearnerBatch


@dataclass(frozen=True)
class Utilisation:
    """Of a run's learner. tflop_per_s: what one of its devices does at most by its data sheet; None: not known."""

    config: Config
    shapes: Shapes
    tflop_per_s: float | None

    @classmethod
    def of(cls, config: Config) -> Self:
        """Of a run on the cluster that this process is connected to. Its slowest known card counts."""
        seen = [card_named(card_of(node["Resources"])) for node in ray.nodes() if node["Alive"]]
        rates = [card.tflop_per_s for card in seen if card] if config.learner.num_gpus else []
        return cls(config, Shapes.of(load_config(config.policy.path)), min(rates, default=None))

    def metrics(self, batch: LearnerBatch, seconds: float) -> dict[str, float]:
        """`throughput/learn_tflop`: 1e12 operations per second and rank. `throughput/learn_mfu`: that over the device's
        rate, where it is known. seconds: of the whole update, as the driver saw it."""
        rate = self.flop(batch) / seconds / self.config.learner.ranks / 1e12
        known = {"throughput/learn_mfu": rate / self.tflop_per_s} if self.tflop_per_s else {}
        return {"throughput/learn_tflop": rate, **known}

    def flop(self, batch: LearnerBatch) -> float:
        """Of an update that computes nothing twice: what gradient checkpointing repeats is no use of the device."""
        prompts = dict(zip(batch.prompt_id, map(len, batch.semantic_prompt_ids), strict=True))
        lengths = np.array(list(map(len, batch.image_prompt_ids)), float) + batch.image_ids.shape[1]
        copies = image_rows(self.config)
        trunk, heads = pass_flop(
            self.shapes,
            sum(prompts.values()),
            sum(map(len, batch.semantic_ids)),
            copies * len(batch),
            copies * lengths.sum(),
            copies * (lengths**2).sum(),
        )
        return trunk_passes(self.config) * trunk + 3 * heads
