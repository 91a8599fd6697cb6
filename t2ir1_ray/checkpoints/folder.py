"""Finding a checkpoint folder and reading its JSON files. Every failure is one line that names the field."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2ir1_ray.errors import UserError

MAX_JSON_BYTES = 64 << 20
"""Of a config.json or an index: the largest published ones have some hundred kilobytes."""
NOT_FETCHED = ("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.gguf")
"""Weights in formats that nothing here reads."""


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
    return hub_snapshot(path, field)


def contents_digest(folder: Path) -> str:
    """Of names, sizes and ends of a checkpoint's files: enough to notice that a folder holds another one now."""
    state = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json"):
            with file.open("rb") as handle:
                size = file.stat().st_size
                head = handle.read(1 << 16)
                handle.seek(max(0, size - (1 << 16)))
                state.update(f"{file.name} {size} ".encode() + head + handle.read())
    return state.hexdigest()[:16]


def hub_snapshot(path: str, field: str) -> Path:
    """The local folder of a hub id. Raises UserError naming `field` if it cannot be had."""
    from huggingface_hub import snapshot_download

    with refuse(f"{field}: {path} is no folder here and cannot be had from the hub"):
        return Path(snapshot_download(path, ignore_patterns=list(NOT_FETCHED)))


def read_config(folder: Path, field: str) -> dict[str, Any]:
    """The checkpoint's `config.json`. Raises UserError if it is no JSON object."""
    return read_json(folder / "config.json", field)


def read_json(file: Path, field: str) -> dict[str, Any]:
    """Raises UserError if the file is no JSON object or absurdly long."""
    with refuse(f"{field}: {file} is no JSON object: download the checkpoint again"):
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"longer than {MAX_JSON_BYTES} bytes")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"is a {type(content).__name__}")
    return content
