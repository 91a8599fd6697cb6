"""Finding and reading checkpoint files: safetensors first, then `.bin` with `weights_only=True`, never a pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from t2ir1_ray.errors import UserError


def resolve_checkpoint(path: str, field: str) -> Path:
    """A folder on disk, or the local snapshot of a hub id (downloaded only if the hub is not switched off).

    Raises UserError naming `field` when neither exists.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{field}: {path} has no config.json: give the checkpoint's own folder")
        return folder
    if path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise UserError(f"{field}: {path} does not exist: give a checkpoint folder or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(path))
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{field}: {path} is no folder here and cannot be had from the hub ({reason})") from None


def read_config(folder: Path, field: str) -> dict[str, Any]:
    """The checkpoint's `config.json`. Raises UserError if it is no JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{field}: {folder / 'config.json'} is no JSON object: download the checkpoint again")
    return config


def read_tensors(folder: Path, field: str) -> dict[str, Tensor]:
    """Every tensor of a (possibly sharded) checkpoint folder, on the CPU. Raises UserError if a file is bad."""
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder, field):
        try:
            if file.suffix == ".safetensors":
                tensors.update(load_file(file))
            else:
                tensors.update(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
        except FileNotFoundError:
            raise UserError(
                f"{field}: {file} is named by the index but missing: download the checkpoint again"
            ) from None
        except (
            SafetensorError,
            RuntimeError,
            ValueError,
            EOFError,
            OSError,
            torch.serialization.pickle.UnpicklingError,
        ):
            raise UserError(f"{field}: {file} is truncated or no checkpoint file: download it again") from None
    return tensors


def _weight_files(folder: Path, field: str) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
    raise UserError(f"{field}: {folder} holds no model.safetensors or pytorch_model.bin: give a complete checkpoint")
