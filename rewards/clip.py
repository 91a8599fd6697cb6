"""Opening CLIP checkpoints with open_clip, strictly and from local files only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import torch
from open_clip.factory import load_state_dict
from torch import Tensor

from rewards.checkpoint import checkpoint_path
from t2ir1_ray.errors import UserError

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

Tokenize = Callable[[Sequence[str]], Tensor]


def load_clip(path: str, arch: str, device: str, dtype: str) -> tuple[torch.nn.Module, Tokenize]:
    """The model in eval mode without gradients, and its tokenizer: texts -> (N, context length) int64.

    path: a weights file (or a folder with one), whose architecture is `arch`; or a folder in open_clip's own layout
        (open_clip_config.json, open_clip_model.safetensors, tokenizer files), which says its architecture itself.
    """
    weights, architecture = _locate(checkpoint_path(path), arch)
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise UserError(f"expert arch: {arch!r} is not known to open_clip: see open_clip.list_models()")
    model = open_clip.CLIP(**config).to(device, getattr(torch, dtype))
    model.load_state_dict(load_state_dict(weights, weights_only=True), strict=True)
    return model.requires_grad_(False).eval(), open_clip.get_tokenizer(architecture)


def _locate(path: str, arch: str) -> tuple[str, str]:
    """(weights file, open_clip's name of the architecture)."""
    folder = Path(path)
    if folder.is_file():
        return path, arch
    files = sorted(
        (file for file in folder.glob("*") if file.suffix in WEIGHT_SUFFIXES),
        key=lambda file: file.suffix != ".safetensors",
    )
    if not files:
        raise UserError(f"expert path: {path} holds no weights: give a weights file or an open_clip folder")
    own_config = (folder / "open_clip_config.json").is_file()
    return str(files[0]), f"local-dir:{path}" if own_config else arch
