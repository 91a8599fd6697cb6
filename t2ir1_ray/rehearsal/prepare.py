"""The configuration of a rehearsal: the given one with small folders in place of checkpoints, for three steps."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import ray
from tokenizers.pre_tokenizers import Whitespace
from transformers import JanusConfig

from actors.connect import connect
from t2ir1_ray.config import SHIPPED, Config
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting.inventory import locate
from t2ir1_ray.fitting.published import published
from t2ir1_ray.janus.policy import load_config
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.rehearsal.experts import WRITERS
from t2ir1_ray.rehearsal.policy import scaled_janus, write_policy
from t2ir1_ray.storage import disk_failure

STEPS = 3
"""The first one also warms up."""
PLAIN = ("User", "Assistant", ":", ".", ",")
LEAST_KV_GB = 0.0625
CPU_SHARE = 0.1
"""Of each actor where there are no GPUs: all of them share few cores."""


@contextmanager
def rehearsal(config: Config, scale: float) -> Iterator[tuple[Config, Path]]:
    """(configuration, run folder) of a rehearsal in a folder of journal.root, removed at the end unless journal.name
    names it. The folder holds what replaces checkpoints, so all nodes must see it, as those of a training must.

    Raises UserError if the policy's sizes are not known, or nothing is left to reward it.
    """
    config = deepcopy(config)
    name = config.journal.name or time.strftime("rehearsal-%Y%m%d-%H%M%S")
    folder = Path(config.journal.root).expanduser().absolute() / name
    if folder.exists():
        raise UserError(f"journal.name: {folder} is there already: choose another name")
    keep, config.journal.name = config.journal.name is not None, "run"
    connect(config.cluster)
    if scale < 1 and not ray.cluster_resources().get("GPU"):
        print("rehearsal: the cluster has no GPU: every role runs on CPUs")
        _use_cpus(config)
    config.journal.root = str(folder)
    _short_run(config)
    try:
        with disk_failure(folder):
            folder.mkdir(parents=True)
            _write_models(config, scale, folder / "models")
        yield config, folder / "run"
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _write_models(config: Config, scale: float, models: Path) -> None:
    """A folder for the policy and for every expert, and their paths in the configuration."""
    janus = _janus(config)
    small = scaled_janus(janus, scale)
    if not Path(config.data.prompts).expanduser().is_file():
        config.data.prompts = str(SHIPPED / "prompts_train.jsonl")
    words = _words(config)
    write_policy(models / "policy", small, words)
    config.policy.path = str(models / "policy")
    config.rollout.kv_cache_gb = max(LEAST_KV_GB, config.rollout.kv_cache_gb * _kv(small) / _kv(janus))
    for name, expert in list(config.experts.items()):
        if expert.kind in WRITERS:
            WRITERS[expert.kind](models / name, scale, words)
            expert.path = str(models / name)
        elif "." not in expert.kind:
            print(f"rehearsal: leaves out experts.{name}: the sizes of {expert.kind} are not known here")
            del config.experts[name]
    if not any(expert.role == "reward" for expert in config.experts.values()):
        raise UserError(f"--rehearse: no expert is left that rewards: add one of {', '.join(WRITERS)}")


def _janus(config: Config) -> JanusConfig:
    """Of the checkpoint where it is here, else as published."""
    folder = locate(config.policy.path)
    janus = load_config(str(folder)) if folder and folder.is_dir() else published(config.policy.path)
    if janus is None:
        known = "Janus-Pro-1B or Janus-Pro-7B"
        raise UserError(f"--rehearse: policy.path={config.policy.path}: is not here, and its name is not {known}")
    return janus


def _words(config: Config) -> Sequence[str]:
    """Of everything that the tokenizers will read."""
    prompts = read_prompts(config.data.prompts)["prompt"].to_pylist()
    asked = (config.policy.plan_template.replace("{prompt}", prompt) for prompt in prompts)
    split = Whitespace().pre_tokenize_str
    texts = (" ".join(PLAIN), config.policy.plan_system, *prompts, *asked)
    return list(dict.fromkeys(word for text in texts for word, _ in split(text)))


def _kv(janus: JanusConfig) -> int:
    text = janus.text_config
    return text.num_hidden_layers * text.num_key_value_heads * text.head_dim


def _short_run(config: Config) -> None:
    """Three steps that evaluate, save and show nothing but a trace. Random weights show every sign there is."""
    config.train.steps, config.train.on_warning = STEPS, "warn"
    config.reward.rotate_monitor = 0  # there may be fewer experts now
    config.eval.every = 0
    config.journal = replace(
        config.journal, dump_every=0, images_every=0, save_every=0, save_last=False, trackers=[], profile=True
    )


def _use_cpus(config: Config) -> None:
    for role in (config.learner, config.rollout, config.reference, *config.experts.values()):
        role.num_gpus, role.num_cpus = 0, min(role.num_cpus, CPU_SHARE)
    config.rollout.weight_transfer = "object_store"
