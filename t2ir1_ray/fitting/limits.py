"""Limits that fields of the configuration and the policy's own shape set to each other, checked before anything starts.

What types and ranges can say is in `config.rules`; here it takes the policy's config.json.
"""

import math

from transformers import JanusConfig

from t2ir1_ray.config import Config
from t2ir1_ray.errors import UserError
from t2ir1_ray.janus.policy import image_size

PAGE = 32
"""Tokens of a page of the text engine's KV cache, at most (16 on GPUs)."""


def check_limits(config: Config, policy: JanusConfig) -> None:
    """Raises UserError with the fields, their values and the limit."""
    text, settings, rollout = policy.text_config, config.policy, config.rollout
    plan, image = settings.max_prompt_tokens + settings.max_plan_tokens, image_size(policy)[0]
    asked = (
        f"policy.max_prompt_tokens={settings.max_prompt_tokens} and policy.max_plan_tokens={settings.max_plan_tokens}"
    )
    if plan + image > text.max_position_embeddings:
        raise UserError(
            f"{asked}: with the {image} tokens of an image these are {plan + image}, the policy has "
            f"{text.max_position_embeddings} positions (max_position_embeddings of its config.json): lower one of them"
        )
    width = 4 if settings.dtype == "float32" else 2
    token = 2 * width * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    needed = math.ceil(plan / PAGE + 1) * PAGE * token / 2**30  # and the engine's empty page
    if needed > rollout.kv_cache_gb:
        raise UserError(
            f"rollout.kv_cache_gb={rollout.kv_cache_gb:g}: one sequence of {asked} takes {needed:.3g}: raise it, or "
            "lower one of those"
        )
