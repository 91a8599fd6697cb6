"""RolloutActor: prompts in, groups of (plan, image) samples out, streamed as Arrow record batches."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from transformers.models.janus.modeling_janus import JanusVQVAE

from actors.weights import Weights
from t2ir1_ray import policy as janus
from t2ir1_ray.config import PolicyConfig, RolloutConfig
from t2ir1_ray.errors import RunError
from t2ir1_ray.schema import PROMPT_SCHEMA, Rollouts


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn. `stream` separates the random numbers of training steps and evaluations."""

    group_size: int
    temperature: float  # 0: greedy
    guidance: float
    seed: int
    stream: str


def sample_seed(sampling: Sampling, prompt_id: str, sample: int) -> int:
    """63-bit seed of one sample: a function of run seed, stream, prompt and sample number only (not of the actor)."""
    text = f"{sampling.seed}/{sampling.stream}/{prompt_id}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


class RolloutActor:
    """One copy of the policy: vLLM for plans, guided decoding through vLLM's modules for images, the VQ decoder."""

    def __init__(self, policy: PolicyConfig, rollout: RolloutConfig):
        from actors.image_decoder import ImageDecoder
        from actors.text_engine import TextEngine

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
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
        self.version: int | None = None  # no policy until the first push
        self._load_frozen(policy.path, config)

    def load(self, weights: Weights) -> tuple[int, str]:
        """Replace the trained parameters; returns the version and the digest of what the model took in."""
        digest = self.engine.load(weights.unpack())
        self.version = weights.version
        return self.version, digest

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        self.engine.join_transfer(init_info)

    def start_update(self, _: None) -> None:
        self.engine.start_update()

    def receive_update(self, update_info: dict[str, Any]) -> None:
        self.engine.receive_update(update_info)

    def finish_update(self, version: int) -> None:
        self.digest = self.engine.finish_update()
        self.version = version

    def confirm(self) -> tuple[int | None, str]:
        """Version and digest of the latest update over NCCL."""
        return self.version, self.digest

    def generate(
        self, prompts: pa.Table, sampling: Sampling, version: int, weights: list[ray.ObjectRef]
    ) -> Iterator[pa.RecordBatch]:
        """`sampling.group_size` samples of every prompt under policy `version`, one `Rollouts` batch per prompt.

        `weights`: one reference, read only if this actor does not hold `version` (it was restarted); empty with NCCL.
        """
        if self.version != version:
            if not weights:
                raise RunError(
                    f"holds version {self.version} instead of {version}, and NCCL transfers cannot be replayed"
                )
            self.load(ray.get(weights[0]))
        for group in self._sample(prompts.cast(PROMPT_SCHEMA).to_pylist(), sampling):
            yield group.to_arrow()

    def _sample(self, prompts: list[dict[str, Any]], sampling: Sampling) -> Iterator[Rollouts]:
        size = sampling.group_size
        rows = [(prompt, sample) for prompt in prompts for sample in range(size)]
        seeds = [sample_seed(sampling, prompt["prompt_id"], sample) for prompt, sample in rows]
        plan_prompts = [self.format.plan_prompt_ids(prompt["prompt"]) for prompt, _ in rows]
        plans = self.engine.generate(plan_prompts, seeds, sampling.temperature, self.format.eos_id)
        texts = [self.format.plan_text(plan.ids) for plan in plans]
        image_prompts = [
            self.format.image_prompt_ids(prompt["prompt"], text) for (prompt, _), text in zip(rows, texts, strict=True)
        ]
        images = self.decoder.generate(
            image_prompts,
            [self.format.unconditional_ids(ids) for ids in image_prompts],
            seeds,
            sampling.guidance,
            sampling.temperature,
        )
        pixels = self._decode_pixels(images.ids)
        samples = Rollouts(
            prompt_id=[prompt["prompt_id"] for prompt, _ in rows],
            sample=np.array([sample for _, sample in rows], np.int32),
            policy_version=np.full(len(rows), self.version, np.int32),
            seed=np.array(seeds, np.int64),
            semantic_prompt_ids=[np.asarray(ids, np.int32) for ids in plan_prompts],
            semantic_ids=[plan.ids for plan in plans],
            semantic_logprobs=[plan.logprobs for plan in plans],
            plan=texts,
            image_prompt_ids=[np.asarray(ids, np.int32) for ids in image_prompts],
            image_ids=images.ids.cpu().numpy().astype(np.int32),
            image_logprobs=images.logprobs.cpu().numpy(),
            pixels=pixels,
        )
        for start in range(0, len(rows), size):
            yield samples.take(range(start, start + size))

    @torch.inference_mode()
    def _decode_pixels(self, image_ids: torch.Tensor, batch_size: int = 64) -> np.ndarray:
        from actors.image_decoder import to_pixels

        return torch.cat([to_pixels(self.vq, ids) for ids in image_ids.split(batch_size)]).numpy()

    def _load_frozen(self, path: str, config: Any) -> None:
        """Image embeddings, aligner and head into the trunk, and the VQ decoder: they never change."""
        state = janus.load_state_dict(path)
        frozen = {name: tensor for name, tensor in state.items() if name.startswith("model.generation_")}
        self.engine.load(frozen)
        self.vq = JanusVQVAE(config.vq_config)
        prefix = "model.vqmodel."
        self.vq.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self.vq.to(device=self.device, dtype=torch.float32).eval().requires_grad_(False)
