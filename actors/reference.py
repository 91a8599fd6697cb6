"""ReferenceActor: log-probabilities under the starting policy, for the KL term."""

import pyarrow as pa

from actors.repeating import repeated
from actors.startup import take_device, uncollected
from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.records.schema import ReferenceLogprobs, Rollouts


class ReferenceActor:
    """The policy as it was before training."""

    def __init__(
        self, policy: PolicyConfig, tokens_per_batch: int, temperature: float, guidance: float, retries: int = 0
    ):
        """guidance: w of the images' log-probs; 1 means those of the conditional distribution.

        retries: how often a call that raised is repeated.
        """
        self.retries = retries
        self.tokens_per_batch = tokens_per_batch
        self.temperature = temperature
        self.guidance = guidance
        with uncollected():
            from t2ir1_ray.janus.policy import PromptFormat, load_model, load_tokenizer

            self.model = load_model(policy.path, policy.dtype, take_device()).requires_grad_(False)
            self.pad_id = PromptFormat(load_tokenizer(policy.path), policy).pad_id if guidance != 1.0 else None

    def logprobs(self, rollouts: pa.RecordBatch) -> pa.RecordBatch:
        """`ReferenceLogprobs` of a `Rollouts` batch."""
        from learner.logprobs import score_rollouts
        from learner.packing import Sequences

        samples = Rollouts.from_arrow(rollouts)
        semantic, image = repeated(
            self.retries,
            lambda: score_rollouts(
                self.model,
                Sequences.of(samples),
                tokens_per_batch=self.tokens_per_batch,
                temperature=self.temperature,
                guidance=self.guidance,
                pad_id=self.pad_id,
            ),
        )
        return ReferenceLogprobs(semantic, image).to_arrow()
