"""Janus models of real and of tiny sizes with random weights, made on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import JanusConfig, JanusForConditionalGeneration

from t2ir1_ray.checkpoints.random_weights import drawn
from t2ir1_ray.janus.layout import hf_config
from tests.gpu.measure import DEVICE
from tests.tiny_janus import tiny_config


@dataclass(frozen=True)
class Size:
    """Of a language model; heads of 128."""

    hidden: int
    layers: int
    intermediate: int


SIZES = {"7B": Size(4096, 30, 11008), "1B": Size(2048, 24, 5632)}


def janus_config(size: Size) -> JanusConfig:
    """Janus-Pro's architecture around a language model of this size: 102,400 tokens, 16,384 image codes."""
    heads = size.hidden // 128
    return hf_config(
        {
            "language_config": {
                "vocab_size": 102400,
                "hidden_size": size.hidden,
                "intermediate_size": size.intermediate,
                "num_hidden_layers": size.layers,
                "num_attention_heads": heads,
                "num_key_value_heads": heads,
            },
            "vision_config": {"params": {}},
            "aligner_config": {"params": {"depth": 2, "input_dim": 1024}},
            "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
            "gen_aligner_config": {"params": {"depth": 2, "n_embed": size.hidden}},
            "gen_head_config": {"params": {"image_token_embed": size.hidden}},
        }
    )


def random_janus(size: Size | None, dtype: torch.dtype, scale: float = 1.0) -> JanusForConditionalGeneration:
    """Without what makes no tokens (vision tower, aligner, VQ model). `size=None`: the tests' tiny Janus.

    scale: of matrices, so that distributions come away from uniform; other than 1, norms get weights like trained ones.
    """
    with drawn(DEVICE.type, dtype):
        janus = JanusForConditionalGeneration(janus_config(size) if size else tiny_config(kv_heads=2))
    for unused in ("vision_model", "aligner", "vqmodel"):
        delattr(janus.model, unused)
    with torch.no_grad():
        for parameter in janus.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
        if scale != 1.0:
            for name, parameter in janus.model.language_model.named_parameters():
                if "norm" in name:  # with ones it does not matter where a norm rounds
                    parameter.normal_(0, 0.5).exp_()
    return janus.eval()


def random_prompts(count: int, longest: int, ragged: int, words: int, seed: int = 0) -> list[list[int]]:
    """`count` lists of token ids, `ragged` ids shorter at most than the longest."""
    rng = np.random.default_rng(seed)
    lengths = longest - rng.integers(0, ragged + 1, count)
    lengths[0] = longest
    return [rng.integers(7, words, length).tolist() for length in lengths]
