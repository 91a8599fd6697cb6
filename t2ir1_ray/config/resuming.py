"""What may change when a run goes on: one table of every key, and what follows from it.

A key is one of three:

- FREE: where things run and what is written down. It holds from then on.
- FORCED: the run's figures depend on it, so that a change needs --force. It holds from then on: nothing in a checkpoint
  (rates, the optimizer's settings, experience collected ahead) brings the old value back.
- FIXED: the state in a checkpoint is of its shape or kind. A change is refused, also with --force; a policy that only
  lies elsewhere is none.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any

from t2ir1_ray.config.portable import portable
from t2ir1_ray.config.rules import leaves
from t2ir1_ray.config.sections import Config


class Change(Enum):
    FREE = "free"
    FORCED = "with --force"
    FIXED = "refused"


_TABLE = {
    "policy": {
        Change.FREE: "question_template",
        Change.FIXED: "path",
        Change.FORCED: "dtype plan_system plan_template max_plan_tokens max_prompt_tokens",
    },
    "data": {Change.FORCED: "prompts prompts_per_step too_long"},
    "rollout": {
        Change.FREE: "actors num_gpus num_cpus weight_transfer",
        Change.FORCED: "group_size images_per_plan prompts_per_call temperature guidance max_sequences kv_cache_gb",
    },
    "experts": {  # of every expert; one that comes or goes is a change of all its keys
        Change.FREE: "num_gpus num_cpus replicas runtime_env",
        Change.FORCED: "kind path weight role batch_size dtype options",
    },
    "reward": {Change.FREE: "probe_every", Change.FORCED: "combine min_group_size retries rotate_monitor"},
    "reference": {Change.FREE: "num_gpus num_cpus replicas", Change.FORCED: "tokens_per_batch"},
    "learner": {
        Change.FREE: "ranks num_gpus num_cpus",
        Change.FIXED: "zero_stage dtype lora_rank lora_targets",
        Change.FORCED: "learning_rate lr_schedule warmup_steps betas weight_decay max_grad_norm beta beta_schedule kl "
        "clip_low clip_high correction semantic_max_ratio image_max_ratio advantage_std advantages image_logprobs "
        "token_credit entropy_band entropy_weight loss_average semantic_weight image_weight zero_variance "
        "max_resamples tokens_per_batch gradient_checkpointing lora_alpha",
    },
    "train": {Change.FREE: "on_warning", Change.FORCED: "steps seed mode max_staleness deterministic"},
    "eval": {Change.FORCED: "prompts verifier every count seed"},
    "journal": {
        Change.FREE: "dump_every images_every save_every save_last keep_last trackers profile",
        Change.FIXED: "root name",  # the run lies where it lies
    },
    "cluster": {
        Change.FREE: "address folder dashboard object_store_gb start_timeout_s call_timeout_s load_timeout_s "
        "place_timeout_s node_timeout_s"
    },
}
ON_RESUME: Mapping[tuple[str, str], Change] = {
    (section, key): change
    for section, changes in _TABLE.items()
    for change, keys in changes.items()
    for key in keys.split()
}
"""(section, key) of the configuration -> what a changed value means; an expert's name is left out."""
EXPERIENCE = (
    *("policy.", "data.", "rollout.", "experts.", "reward.", "reference.", "train.seed", "train.deterministic"),
    *("learner.image_logprobs", "learner.zero_variance", "learner.max_resamples"),
)
"""Beginnings of the keys that a step's samples and scores depend on."""


def change_of(key: str) -> Change:
    """Of a dotted path such as `learner.betas.0` or `experts.hps.options.threshold`."""
    section, *rest = key.split(".")
    if section == "experts":
        rest = rest[1:]
    return ON_RESUME[section, rest[0]] if rest else Change.FORCED


def differences(before: Config, now: Config) -> dict[Change, list[str]]:
    """What changed, a sentence each, by kind."""
    old, new = (dict(leaves(asdict(config))) for config in (before, now))
    found: dict[Change, list[str]] = {change: [] for change in Change}
    for key in sorted(old.keys() | new.keys()):
        if key not in old or key not in new or old[key] != new[key]:
            was, now_is = (f"{values[key]!r:.80}" if key in values else "nothing" for values in (old, new))
            found[change_of(key)].append(f"{key}: {was} is now {now_is}")
    return found


def fingerprint(config: Config) -> str:
    """Equal for configurations that sample and score a step in the same way."""
    values: dict[str, Any] = {
        key: value
        for key, value in leaves(portable(asdict(config)))
        if key.startswith(EXPERIENCE) and change_of(key) is Change.FORCED  # a run's policy is the same at any path
    }
    values["reference"] = config.learner.beta > 0
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
