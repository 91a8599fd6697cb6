"""Which files of a folder are read: one rule, the same for the policy and for an expert."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewards import load_expert
from rewards.clip import load_clip
from t2ir1_ray.janus import policy
from tests.core.refusals import refused
from tests.rewards.tiny_experts import write_git_folder

OPEN = {
    "policy": lambda folder: policy.checked_tensors(str(folder), policy.load_config(str(folder))),
    "git": lambda folder: load_expert("git", str(folder)).model.state_dict(),
}


@pytest.fixture(scope="module")
def whole(tiny_janus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"policy": tiny_janus, "git": write_git_folder(tmp_path_factory.mktemp("git"))}


def shard(folder: Path, parts: int = 2, suffix: str = "safetensors") -> None:
    """model.safetensors in `parts` files beside it, and their index."""
    tensors, stem = load_file(folder / "model.safetensors"), "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = sorted(tensors), {}
    for part in range(parts):
        file = f"{stem}-{part + 1:05}-of-{parts:05}.{suffix}"
        content = {name: tensors[name] for name in names[part::parts]}
        if suffix == "safetensors":
            save_file(content, folder / file, {"format": "pt"})
        else:
            torch.save(content, folder / file)
        weight_map |= dict.fromkeys(content, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def an_index_and_a_single_file(folder: Path) -> tuple[str, ...]:
    shard(folder)
    return "model.safetensors.index.json", "both", "model.safetensors,"


def torch_files_twice(folder: Path) -> tuple[str, ...]:
    shard(folder, suffix="bin")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return "pytorch_model.bin.index.json", "both", "pytorch_model.bin,"


def shards_of_two_saves(folder: Path) -> tuple[str, ...]:
    shard(folder, parts=3)
    shard(folder, parts=2)
    (folder / "model.safetensors").unlink()
    return "model.safetensors.index.json", "both", "model-00001-of-00003.safetensors"


def a_shard_too_few(folder: Path) -> tuple[str, ...]:
    shard(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()
    return "model-00002-of-00002.safetensors", "named by"


def shards_without_an_index(folder: Path) -> tuple[str, ...]:
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").unlink()
    return ("model.safetensors is missing beside model-00001-of-00002.safetensors",)


def a_tensor_in_two_shards(folder: Path) -> tuple[str, ...]:
    shard(folder)
    file = folder / "model-00002-of-00002.safetensors"
    shutil.copy(folder / "model-00001-of-00002.safetensors", file)
    (folder / "model.safetensors").unlink()
    return file.name, "another shard"


@pytest.mark.parametrize("reader", OPEN)
@pytest.mark.parametrize(
    "spoil",
    [
        an_index_and_a_single_file,
        torch_files_twice,
        shards_of_two_saves,
        a_shard_too_few,
        shards_without_an_index,
        a_tensor_in_two_shards,
    ],
)
def test_a_folder_that_can_be_read_in_two_ways_is_refused(
    spoil: Callable[[Path], tuple[str, ...]], reader: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole[reader], tmp_path / "folder"))
    words = spoil(folder)
    refused(lambda: OPEN[reader](folder), "policy.path" if reader == "policy" else "expert path", *words)


@pytest.mark.parametrize("reader", OPEN)
@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors_come_before_torch_files_and_variants(
    sharded: bool, reader: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole[reader], tmp_path / "folder"))
    expected = OPEN[reader](whole[reader])
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    torch.save(zeros, folder / "pytorch_model.bin")
    save_file(zeros, folder / "model.fp16.safetensors", {"format": "pt"})
    save_file(zeros, folder / "other.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    if sharded:
        shard(folder)
        (folder / "model.safetensors").unlink()
    found = OPEN[reader](folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapter_beside_an_experts_weights_changes_nothing(whole: dict[str, Path], tmp_path: Path) -> None:
    """transformers alone would look for adapters in the folder and load them on top."""
    folder = Path(shutil.copytree(whole["git"], tmp_path / "folder"))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    found, expected = OPEN["git"](folder), OPEN["git"](whole["git"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_with_several_files_of_an_expert_without_layout_is_refused(tmp_path: Path) -> None:
    for name in ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"):
        torch.save({"state_dict": {}}, tmp_path / name)
    line = refused(
        lambda: load_clip(str(tmp_path), "ViT-B-32", "cpu", "float32"), "expert path", "give the path of one"
    )
    assert "HPS_v2.1_compressed.pt and HPS_v2_compressed.pt" in line
