"""Which files hold a checkpoint's weights, and reading them. One rule for the policy and for every expert.

1. Safetensors come before torch's own formats: hubs publish both, with the same tensors.
2. Within a format a folder holds one file, or an index and exactly the shards that it names.

A folder with more than that, such as an index and a newer single file, is refused: nothing in it says which of the two
is meant. Files of other formats, variants (`model.fp16.safetensors`) and adapters are not looked at.
Torch files are read with `weights_only=True`, never as a pickle.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from t2ir1_ray.checkpoints.folder import read_json, refuse
from t2ir1_ray.errors import UserError

FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""(stem, suffix) of transformers' weight files, the first that a folder has is read."""
TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def read_tensors(folder: Path, field: str) -> dict[str, Tensor]:
    """Every tensor of a (possibly sharded) checkpoint folder, on the CPU. Raises UserError if a file is bad."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder, field):
        with refuse(f"{field}: {file} is truncated or no checkpoint file: download it again"):
            if file.suffix == ".safetensors":
                found = load_file(file)
            else:
                found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
                raise TypeError("not a mapping of names to tensors")
        if twice := sorted(tensors.keys() & found.keys()):
            raise UserError(
                f"{field}: {file} holds {twice[0]:.80}, which another shard holds too: download the checkpoint again"
            )
        tensors.update(found)
    return tensors


def weight_files(folder: Path, field: str) -> list[Path]:
    """The files that this project reads of a folder in transformers' layout, see the head of this module.

    Raises UserError if there are none, if one is missing, or if there are more than belong together.
    """
    for stem, suffix in FORMATS:
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        own_name = re.compile(rf"{stem}(-.*)?\.{suffix}")
        present = sorted(file.name for file in folder.iterdir() if own_name.fullmatch(file.name))
        if index.is_file():
            names, keeper = _shards(index, suffix, field), index.name
        elif present:
            names, keeper = [single.name], single.name
        else:
            continue
        for name in names:
            if not (folder / name).is_file():
                why = f"is named by {index.name}" if index.is_file() else f"is missing beside {present[0]}"
                raise UserError(f"{field}: {folder / name} {why} but is no file here: download the checkpoint again")
        if surplus := [name for name in present if name not in names]:
            raise UserError(
                f"{field}: {folder} holds both {keeper} and {surplus[0]}, which does not belong to it: "
                "remove the one that is out of date"
            )
        return [folder / name for name in names]
    raise UserError(f"{field}: {folder} holds no model.safetensors or pytorch_model.bin: give a complete checkpoint")


def only_weight_file(folder: Path, field: str) -> Path:
    """The one weights file of a folder without a layout. Raises UserError if there is none or more than one."""
    files = sorted(folder.glob("*.safetensors"))
    files = files or sorted(file for file in folder.iterdir() if file.suffix in TORCH_SUFFIXES)
    if not files:
        raise UserError(f"{field}: {folder} holds no weights: give a weights file or an open_clip folder")
    if len(files) > 1:
        raise UserError(f"{field}: {folder} holds both {files[0].name} and {files[1].name}: give the path of one")
    return files[0]


def _shards(index: Path, suffix: str, field: str) -> list[str]:
    """The files that an index names. Raises UserError if one is not of its own folder and kind."""
    weight_map = read_json(index, field).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{field}: {index} has no weight_map: download the checkpoint again")
    names = list(dict.fromkeys(weight_map.values())) if all(isinstance(v, str) for v in weight_map.values()) else [None]
    for name in names:
        if name is None or name != Path(name).name or "\0" in name or not name.endswith(f".{suffix}"):
            raise UserError(f"{field}: {index} names {name!r:.80}, which is no .{suffix} file of its own folder")
    return sorted(names)
