"""Sampler: prompts in, (plan, image) samples out, by the policy that it holds. Knows nothing of Ray."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from actors.image_decoder import ImageDecoder, to_pixels
from actors.sampling import Sampling, sample_seed
from actors.startup import take_device
from actors.text_engine import Plan, TextEngine
from t2ir1_ray.config import PolicyConfig, RolloutConfig
from t2ir1_ray.janus import policy as janus
from t2ir1_ray.records.schema import Rollouts

TRUNK = ("model.language_model.", "lm_head.", "model.generation_")
"""Parameter name prefixes of all that makes tokens."""


class Sampler:
    """One copy of the policy: vLLM for plans, guided decoding through vLLM's modules for images, the VQ decoder.

    vLLM reads its switches when this module is imported: see `engine_environment`.
    """

    def __init__(
        self, policy: PolicyConfig, rollout: RolloutConfig, awaits_weights: bool = True, on_checkpoint: bool = False
    ):
        """`awaits_weights=False`: the checkpoint itself is the policy, as version 0; no push is needed.
        `on_checkpoint`: pushes bring a part of what makes tokens (LoRA), the rest stays the checkpoint's."""
        self.device = take_device()
        config = janus.load_config(policy.path)
        self.format = janus.PromptFormat(janus.load_tokenizer(policy.path), policy)
        num_tokens, _ = janus.image_size(config)
        self.engine = TextEngine(
            config,
            policy.dtype,
            max_prompt=policy.max_prompt_tokens,
            max_new=policy.max_plan_tokens,
            max_sequences=rollout.max_sequences,
            kv_cache_gb=rollout.kv_cache_gb,
            nccl_transfer=rollout.weight_transfer == "nccl",
        )
        self.decoder = ImageDecoder(self.engine.trunk, self.format.pad_id, num_tokens)
        self.version: int | None = None if awaits_weights else 0
        """Of the policy that is held; None before the first push."""
        comes_later = awaits_weights and not on_checkpoint
        self._load_checkpoint(policy.path, config, ("model.generation_",) if comes_later else TRUNK)

    def take_version(self, version: int, weights: Mapping[str, Tensor]) -> str:
        """Replace the trained parameters; returns the digest of what the model took in."""
        digest = self.engine.take_weights(weights)
        self.version = version
        return digest

    def sample(
        self, prompts: Sequence[dict[str, Any]], numbers: Sequence[int], sampling: Sampling, vq_batch: int = 64
    ) -> Rollouts:
        """One sample per row: number `numbers[i]` of prompt row `prompts[i]` (its `prompt_id` and `prompt` count).

        A sample depends on its own row, not on the rows beside it. Without a sampled plan, `semantic_ids` are empty.
        `vq_batch`: images that become pixels at once; 1 keeps even their last bit from depending on the others.
        Raises RunError if the policy is not whole.
        """
        self.engine.trunk.held.check_whole(self.engine.trunk)
        rows = list(zip(prompts, numbers, strict=True))
        seeds = [sample_seed(sampling, prompt["prompt_id"], number) for prompt, number in rows]
        plan_prompts = [self.format.plan_prompt_ids(prompt["prompt"]) for prompt, _ in rows]
        owners = [number - number % sampling.images_per_plan for number in numbers]  # the first sample of each plan
        plan_seeds = [
            sample_seed(sampling, prompt["prompt_id"], owner) for prompt, owner in zip(prompts, owners, strict=True)
        ]
        plans, texts = self._plans(plan_prompts, plan_seeds, sampling)
        image_prompts = [
            self.format.image_prompt_ids(prompt["prompt"], text) for (prompt, _), text in zip(rows, texts, strict=True)
        ]
        images = self.decoder.generate(
            image_prompts,
            [self.format.unconditional_ids(ids) for ids in image_prompts],
            seeds,
            sampling.guidance,
            sampling.temperature,
            sampling.guided_logprobs,
        )
        pixels = self._decode_pixels(images.ids, vq_batch)
        return Rollouts(
            prompt_id=[prompt["prompt_id"] for prompt, _ in rows],
            sample=np.array(numbers, np.int32),
            policy_version=np.full(len(rows), self.version, np.int32),
            seed=np.array(seeds, np.int64),
            semantic_prompt_ids=[np.asarray(ids, np.int32) for ids in plan_prompts],
            semantic_ids=[plan.ids for plan in plans],
            semantic_logprobs=[plan.logprobs for plan in plans],
            plan_truncated=np.array([plan.truncated for plan in plans], bool),
            plan=[text or "" for text in texts],
            image_prompt_ids=[np.asarray(ids, np.int32) for ids in image_prompts],
            image_ids=images.ids.cpu().numpy().astype(np.int32),
            image_logprobs=images.logprobs.cpu().numpy(),
            pixels=pixels,
        )

    def _plans(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> tuple[list[Plan], list[str | None]]:
        """What was sampled (nothing if no plan is wanted or one is given), and the text that each image follows."""
        if sampling.semantic_cot and sampling.plan is None:
            wanted = list(zip(map(tuple, prompts), seeds, strict=True))
            distinct = list(dict.fromkeys(wanted))
            written = self.engine.generate(*zip(*distinct, strict=True), sampling.temperature, self.format.eos_id)
            plan_of = dict(zip(distinct, written, strict=True))
            plans = [plan_of[key] for key in wanted]
            return plans, [self.format.plan_text(plan.ids) for plan in plans]
        nothing = Plan(np.empty(0, np.int32), np.empty(0, np.float32), truncated=False)
        return [nothing] * len(prompts), [sampling.plan if sampling.semantic_cot else None] * len(prompts)

    @torch.inference_mode()
    def _decode_pixels(self, image_ids: torch.Tensor, batch_size: int) -> np.ndarray:
        return torch.cat([to_pixels(self.vq, ids) for ids in image_ids.split(batch_size)]).numpy()

    def _load_checkpoint(self, path: str, config: Any, prefixes: tuple[str, ...]) -> None:
        """Tensors of these name prefixes into the trunk, and the VQ decoder; what is trained comes later."""
        state = janus.load_state_dict(path)
        self.engine.take_weights({name: tensor for name, tensor in state.items() if name.startswith(prefixes)})
        self.vq = JanusVQVAE(config.vq_config)
        prefix = "model.vqmodel."
        self.vq.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self.vq.to(device=self.device, dtype=torch.float32).eval().requires_grad_(False)
