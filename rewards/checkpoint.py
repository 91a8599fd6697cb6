"""Opening pretrained models strictly: for a missing weight transformers only warns and takes a random one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from t2ir1_ray.checkpoints import tokenizer as tokenizers
from t2ir1_ray.checkpoints.folder import hub_snapshot
from t2ir1_ray.checkpoints.random_weights import drawn, has_random_weights
from t2ir1_ray.checkpoints.weights import read_tensors
from t2ir1_ray.errors import UserError

FIELD = "expert path"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def checkpoint_path(path: str) -> str:
    """`path` with `~` expanded if it exists, or the local snapshot of a hub id. Raises UserError otherwise."""
    local = Path(path).expanduser()
    if local.exists():
        return str(local)
    if HUB_ID.fullmatch(str(path)):
        return str(hub_snapshot(str(path), FIELD))
    raise UserError(f"{FIELD}: {path} does not exist: give a checkpoint folder or a hub id like org/name")


def load_tokenizer(path: str) -> tokenizers.TokenizersBackend:
    """The tokenizer of a checkpoint folder, as its `tokenizer.json` says. Raises UserError if its files are bad."""
    return tokenizers.load_tokenizer(Path(path), FIELD)


def load_pretrained(
    model_class: Any, path: str, device: str, dtype: str, config: Any = None, key_mapping: Any = None, **settings: Any
) -> torch.nn.Module:
    """A model of transformers in eval mode without gradients, its weights read as `checkpoints.weights` says.

    config: the model's configuration; default: the folder's config.json, with `settings` in place of its values.
    key_mapping: pattern -> replacement for the names of the weights.
    Raises UserError if the checkpoint lacks a weight of the model or has one of another shape. Weights that the model
    does not know are ignored, as transformers does: published checkpoints carry old buffers.
    """
    disable_progress_bar()
    config = config or model_class.config_class.from_pretrained(path, **settings)
    if has_random_weights(Path(path)):
        with drawn(device, getattr(torch, dtype)):
            return model_class(config).to(device).requires_grad_(False).eval()
    model, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=read_tensors(Path(path), FIELD),
        dtype=getattr(torch, dtype),
        key_mapping=key_mapping,
        output_loading_info=True,
    )
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            first = sorted(map(str, report[problem]))[0]
            raise UserError(
                f"{FIELD}: {path}: {len(report[problem])} {problem.replace('_', ' ')} for "
                f"{model_class.__name__}, such as {first}: download the checkpoint again"
            )
    return model.requires_grad_(False).eval().to(device)
