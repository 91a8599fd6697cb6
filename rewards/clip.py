"""Opening CLIP checkpoints with open_clip, strictly and from local files only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from torch import Tensor

from rewards.checkpoint import FIELD, checkpoint_path, load_tokenizer
from t2ir1_ray.checkpoints.folder import refuse
from t2ir1_ray.checkpoints.random_weights import drawn, has_random_weights
from t2ir1_ray.checkpoints.weights import only_weight_file
from t2ir1_ray.errors import UserError

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Of open_clip's own layout; hubs publish the model under transformers' names beside them."""

LOCAL = "local-dir:"

Tokenize = Callable[[Sequence[str]], Tensor]


def load_clip(path: str, arch: str, device: str, dtype: str) -> tuple[torch.nn.Module, Tokenize]:
    """The model in eval mode without gradients, and its tokenizer: texts -> (N, context length) int64.

    path: a weights file (or a folder with one), whose architecture is `arch`; or a folder in open_clip's own layout
        (open_clip_config.json, open_clip_model.safetensors, tokenizer files), which says its architecture itself.
    """
    folder = checkpoint_path(path)
    random = has_random_weights(Path(folder))
    weights, architecture = ("", f"{LOCAL}{folder}") if random else _locate(folder, arch)
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise UserError(f"expert arch: {arch!r} is not known to open_clip: see open_clip.list_models()")
    if random:
        with drawn(device, getattr(torch, dtype)):
            model = open_clip.CLIP(**config)
    else:
        model = open_clip.CLIP(**config).to(device, getattr(torch, dtype))
        model.load_state_dict(load_state_dict(weights, weights_only=True), strict=True)
    return model.requires_grad_(False).eval(), _tokenizer(architecture, config)


def _locate(path: str, arch: str) -> tuple[str, str]:
    """(weights file, open_clip's name of the architecture)."""
    folder = Path(path)
    if folder.is_file():
        return path, arch
    if not (folder / "open_clip_config.json").is_file():
        return str(only_weight_file(folder, FIELD)), arch
    files = [folder / name for name in OPEN_CLIP_FILES if (folder / name).is_file()]
    if not files:
        raise UserError(f"{FIELD}: {path} holds no {' or '.join(OPEN_CLIP_FILES)}: download the checkpoint again")
    return str(files[0]), f"{LOCAL}{path}"


def _tokenizer(architecture: str, config: Mapping[str, Any]) -> Tokenize:
    """open_clip's own tokenizer; or one of transformers, as its `tokenizer.json` says."""
    name = config["text_cfg"].get("hf_tokenizer_name")
    if not name:
        return open_clip.get_tokenizer(architecture)
    folder = architecture.removeprefix(LOCAL) if architecture.startswith(LOCAL) else checkpoint_path(name)
    stated = load_tokenizer(folder)
    with refuse(f"{FIELD}: {folder}: set tokenizer_class in tokenizer_config.json to TokenizersBackend"):
        tokenizer = open_clip.get_tokenizer(architecture)
    tokenizer.tokenizer = stated  # what open_clip opens is of a class that the metadata choose
    return tokenizer
