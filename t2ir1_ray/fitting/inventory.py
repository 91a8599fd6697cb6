"""What is on this machine: its GPUs, and how large the checkpoints are. Asks no network and loads no model."""

import json
import math
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from t2ir1_ray.checkpoints.random_weights import has_random_weights, random_parameters

GB = 1e9


def local_gpus() -> tuple[tuple[float, float], ...]:
    """(total, free) GB of the GPUs that this process may use, from nvidia-smi: no CUDA context is made here."""
    return machine_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))


def machine_gpus(visible: str | None = None) -> tuple[tuple[float, float], ...]:
    """(total, free) GB of this machine's GPUs. visible: their indices as in CUDA_VISIBLE_DEVICES; None: all."""
    lines = _ask_driver("memory.total,memory.free", visible)
    return tuple(
        (int(total) * 2**20 / GB, int(free) * 2**20 / GB) for total, free in re.findall(r"^(\d+), (\d+)$", lines, re.M)
    )


def local_card() -> str:
    """Name of the first GPU that this process may use; empty if there is none."""
    return _ask_driver("name", os.environ.get("CUDA_VISIBLE_DEVICES")).partition("\n")[0].strip()


def _ask_driver(fields: str, visible: str | None) -> str:
    """A line per GPU by nvidia-smi; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None or visible == "":
        return ""
    query = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    query += [f"--id={visible}"] if visible else []
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def locate(path: str) -> Path | None:
    """The local file or folder of a checkpoint: the path itself, or a hub id's snapshot in the cache. No network."""
    local = Path(path).expanduser()
    if local.exists() or not is_hub_id(path):
        return local if local.exists() else None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(path, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def count_parameters(path: str) -> int | None:
    """Numbers in a checkpoint's files, from their headers; None if it is not here or of an unknown kind."""
    place = locate(path)
    if place is None:
        return None
    if has_random_weights(place):
        return random_parameters(place)
    names = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
    names = names or [file for pattern in ("*.bin", "*.pt", "*.pth") for file in sorted(place.rglob(pattern))]
    counts = [_count_safetensors(f) if f.suffix == ".safetensors" else _count_pickled(f) for f in names]
    return sum(counts) if counts and None not in counts else None


def _count_safetensors(file: Path) -> int | None:
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, struct.error, KeyError, TypeError, MemoryError, OverflowError):
        return None


def _count_pickled(file: Path) -> int | None:
    import torch

    try:
        content = torch.load(file, map_location="meta", weights_only=True, mmap=True)
    except Exception:  # of several classes; the role that loads it says what is wrong
        return None
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return sum(value.numel() for value in tensors.values() if isinstance(value, torch.Tensor)) or None


def is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "~", "/"))
