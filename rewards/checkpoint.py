"""Opening pretrained models strictly: for a missing weight transformers only warns and takes a random one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from t2ir1_ray.errors import UserError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def checkpoint_path(path: str) -> str:
    """`path` with `~` expanded if it exists, or unchanged if it can be a hub id. Raises UserError otherwise."""
    local = Path(path).expanduser()
    if local.exists():
        return str(local)
    if HUB_ID.fullmatch(str(path)):
        return str(path)
    raise UserError(f"expert path: {path} does not exist: give a checkpoint folder or a hub id like org/name")


def check_shards(path: str) -> None:
    """Raises UserError if an index in the folder names a file that does not lie in it."""
    for index in Path(path).glob("*.index.json"):
        for name in json.loads(index.read_bytes())["weight_map"].values():
            if name != Path(name).name or not (index.parent / name).is_file():
                raise UserError(f"expert path: {index} names {name!r:.80}, which is no file of its own folder")


def load_pretrained(model_class: Any, path: str, device: str, dtype: str, **kwargs: Any) -> torch.nn.Module:
    """`model_class.from_pretrained(path)` in eval mode without gradients, from safetensors (sharded or not) or `.bin`.

    Raises UserError if the checkpoint lacks a weight of the model or has one of another shape. Weights that the model
    does not know are ignored, as transformers does: published checkpoints carry old buffers.
    """
    disable_progress_bar()
    check_shards(path)
    model, report = model_class.from_pretrained(path, dtype=getattr(torch, dtype), output_loading_info=True, **kwargs)
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            first = sorted(map(str, report[problem]))[0]
            raise UserError(
                f"expert path: {path}: {len(report[problem])} {problem.replace('_', ' ')} for "
                f"{model_class.__name__}, such as {first}: download the checkpoint again"
            )
    return model.requires_grad_(False).eval().to(device)
