"""Finding and reading checkpoint files: safetensors first, then `.bin` with `weights_only=True`, never a pickle."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from t2ir1_ray.errors import UserError

MAX_JSON_BYTES = 64 << 20
"""Of a config.json or an index: the largest published ones have some hundred kilobytes."""


@contextmanager
def refuse(what: str) -> Iterator[None]:
    """Whatever the libraries that read checkpoints raise (nearly every class) becomes a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{what} ({reason})") from None


def resolve_checkpoint(path: str, field: str) -> Path:
    """A folder on disk, or the local snapshot of a hub id (downloaded only if the hub is not switched off).

    Raises UserError naming `field` when neither exists.
    """
    if not path.isprintable():
        raise UserError(f"{field}: {path!r:.200} holds control characters: give a path without")
    with refuse(f"{field}: {path[:200]} cannot be opened"):
        folder = Path(path).expanduser()
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise UserError(f"{field}: {path} has no config.json: give the checkpoint's own folder")
            return folder
    if path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise UserError(f"{field}: {path} does not exist: give a checkpoint folder or a hub id")
    from huggingface_hub import snapshot_download

    with refuse(f"{field}: {path} is no folder here and cannot be had from the hub"):
        return Path(snapshot_download(path))


def read_config(folder: Path, field: str) -> dict[str, Any]:
    """The checkpoint's `config.json`. Raises UserError if it is no JSON object."""
    return _read_json(folder / "config.json", field)


def read_tensors(folder: Path, field: str) -> dict[str, Tensor]:
    """Every tensor of a (possibly sharded) checkpoint folder, on the CPU. Raises UserError if a file is bad."""
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder, field):
        if not file.is_file():
            raise UserError(f"{field}: {file} is named by the index but missing: download the checkpoint again")
        with refuse(f"{field}: {file} is truncated or no checkpoint file: download it again"):
            if file.suffix == ".safetensors":
                found = load_file(file)
            else:
                found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
                raise TypeError("not a mapping of names to tensors")
        tensors.update(found)
    return tensors


def _weight_files(folder: Path, field: str) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return [folder / name for name in _shards(index, suffix, field)]
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
    raise UserError(f"{field}: {folder} holds no model.safetensors or pytorch_model.bin: give a complete checkpoint")


def _shards(index: Path, suffix: str, field: str) -> list[str]:
    """The files that an index names. Raises UserError if one is not of its own folder and kind."""
    weight_map = _read_json(index, field).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{field}: {index} has no weight_map: download the checkpoint again")
    names = list(dict.fromkeys(weight_map.values())) if all(isinstance(v, str) for v in weight_map.values()) else [None]
    for name in names:
        if name is None or name != Path(name).name or "\0" in name or not name.endswith(f".{suffix}"):
            raise UserError(f"{field}: {index} names {name!r:.80}, which is no .{suffix} file of its own folder")
    return sorted(names)


def _read_json(file: Path, field: str) -> dict[str, Any]:
    with refuse(f"{field}: {file} is no JSON object: download the checkpoint again"):
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"longer than {MAX_JSON_BYTES} bytes")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"is a {type(content).__name__}")
    return content
