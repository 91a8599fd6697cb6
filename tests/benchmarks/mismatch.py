"""`python -m tests.benchmarks.mismatch [--out FILE.json]`: by how much do the log-probs of sampler and learner differ?

Plans by vLLM and images by the image decoder, and the learner's log-probs of the same tokens under the same weights: in
float32, in bfloat16 as vLLM and transformers round by themselves, and with `janus.rounding`. Random weights, those of
norms as far from one as in trained models.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.engine_environment import CPU_ENVIRONMENT, ENVIRONMENT

os.environ.update(ENVIRONMENT | CPU_ENVIRONMENT)

import numpy as np
import torch

from actors import vllm_model
from actors.image_decoder import ImageDecoder
from actors.text_engine import TextEngine
from learner.logprobs import score_rollouts
from learner.packing import Sequences
from t2ir1_ray.janus.policy import unconditional_ids
from t2ir1_ray.janus.rounding import round_as_engines
from tests.gpu.models import Size, random_janus, random_prompts
from tests.tiny_janus import VOCABULARY

PAD, EOS = 2, 1
SIZES = {"tiny": (None, 4, 36, VOCABULARY), "4 layers of 1024": (Size(1024, 4, 2816), 2, 64, 102400)}
BRANCHES = 4


def figures(size: str, dtype: str, aligned: bool = True) -> Iterator[dict[str, Any]]:
    """Of one size: a line per segment. aligned=False: layers of transformers in the learner, of vLLM in the sampler."""
    rounding = dict(vllm_model._ROUNDING)
    if not aligned:
        vllm_model._ROUNDING.clear()
    shape, count, image_tokens, words = SIZES[size]
    janus = random_janus(shape, getattr(torch, dtype), scale=3.0)
    engine = TextEngine(janus.config, dtype, max_prompt=64, max_new=48, max_sequences=16, kv_cache_gb=0.25)
    engine.take_weights(janus.state_dict())
    rows = [prompt for prompt in random_prompts(count, 40, 5, words) for _ in range(BRANCHES)]
    plans = engine.generate(rows, range(len(rows)), 1.0, EOS)
    free = [unconditional_ids(prompt, PAD) for prompt in rows]
    images = ImageDecoder(engine.trunk, PAD, image_tokens).generate(rows, free, range(len(rows)), 5.0, 1.0)
    engine.close()
    vllm_model._ROUNDING.update(rounding)

    given = [np.array(prompt, np.int32) for prompt in rows]
    samples = Sequences(given, [plan.ids for plan in plans], given, images.ids.cpu().numpy())
    if aligned and dtype != "float32":
        round_as_engines(janus)
    semantic, image = score_rollouts(janus, samples, tokens_per_batch=8192)
    sampled = {"semantic": np.concatenate([plan.logprobs for plan in plans]), "image": images.logprobs.cpu().numpy()}
    for segment, learned in {"semantic": np.concatenate(semantic), "image": image}.items():
        off = np.abs(sampled[segment] - learned)
        yield {
            "size": size,
            "dtype": dtype,
            "rounding": "the same" if aligned else "each its own",
            "segment": segment,
            "tokens": off.size,
            "abs_mean": float(off.mean()),
            "abs_max": float(off.max()),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    for size in SIZES:
        for dtype, aligned in (("float32", True), ("bfloat16", False), ("bfloat16", True)):
            for line in figures(size, dtype, aligned):
                print(json.dumps(line), flush=True)
                found.append(line)
    if options.out:
        processor = platform.processor() or platform.machine()
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
        options.out.write_text(json.dumps({"machine": machine, "figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
