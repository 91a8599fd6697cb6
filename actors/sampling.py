"""How samples are drawn, and the seed of each."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn. `stream` separates the random numbers of training steps and evaluations."""

    group_size: int
    temperature: float  # 0: greedy
    guidance: float
    seed: int
    stream: str
    semantic_cot: bool = True  # False: images from the prompts alone
    plan: str | None = None  # this text as every sample's plan instead of a sampled one
    images_per_plan: int = 1  # samples K p .. K p + K - 1 share a plan
    guided_logprobs: bool = False  # of image tokens: under the guided instead of the conditional distribution


def sample_seed(sampling: Sampling, prompt_id: str, sample: int) -> int:
    """63-bit seed of one sample: a function of run seed, stream, prompt and sample number only (not of the actor)."""
    text = f"{sampling.seed}/{sampling.stream}/{prompt_id}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1
