"""A Janus policy with drawn weights that writes plans of a usual length.

Among equally likely tokens the end of a plan would come after 100,000 of them, and every plan be cut off. So all words
share a large first coordinate, which the layers cannot drown, and the head reads the chance of the end from it.
"""

import math

import torch
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration

from t2ir1_ray.checkpoints.random_weights import random_tensors

PLAN = 80
"""Tokens of a plan in the mean, about."""
LOUD = 2.0
"""The first coordinate against all that the layers add to the others, whose variance is about 1.4 a layer."""
NORMED = 0.9
"""Of that coordinate's largest value behind a norm, which leaves the others a mean square of 0.2."""


def random_policy(config: JanusConfig) -> dict[str, Tensor]:
    """The state dict under transformers' names, the same in every process."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in JanusForConditionalGeneration(config).state_dict().items()}
    tensors = random_tensors(shapes)
    text = config.text_config
    words = tensors["model.language_model.embed_tokens.weight"].bfloat16()
    words[:, 0] = LOUD * math.sqrt(1.4 * text.num_hidden_layers * text.hidden_size)
    head = tensors["lm_head.weight"].bfloat16()
    head[:, 0] = 0
    head[text.eos_token_id] = 0
    head[text.eos_token_id, 0] = math.log(text.vocab_size / PLAN) / (NORMED * math.sqrt(text.hidden_size))
    return tensors | {"model.language_model.embed_tokens.weight": words, "lm_head.weight": head}
