"""ReferenceActor: log-probabilities under the starting policy, for the KL term."""

import pyarrow as pa
import torch

from learner.logprobs import score_rollouts
from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.policy import load_model
from t2ir1_ray.schema import ReferenceLogprobs, Rollouts


class ReferenceActor:
    """The policy as it was before training."""

    def __init__(self, policy: PolicyConfig, tokens_per_batch: int, temperature: float):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(policy.path, policy.dtype, device).requires_grad_(False)
        self.tokens_per_batch = tokens_per_batch
        self.temperature = temperature

    def logprobs(self, rollouts: pa.RecordBatch) -> pa.RecordBatch:
        """`ReferenceLogprobs` of a `Rollouts` batch."""
        samples = Rollouts.from_arrow(rollouts)
        semantic, image = score_rollouts(
            self.model,
            samples.semantic_prompt_ids,
            samples.semantic_ids,
            samples.image_prompt_ids,
            samples.image_ids,
            tokens_per_batch=self.tokens_per_batch,
            temperature=self.temperature,
        )
        return ReferenceLogprobs(semantic, image).to_arrow()
