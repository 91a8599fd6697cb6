"""Hostile checkpoints: each hazard by name, refused with one line and without running what they hold."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2ir1_ray.checkpoints.weights import read_tensors
from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.janus import layout as janus_layout
from t2ir1_ray.janus import policy
from tests.core.refusals import refused
from tests.tiny_janus import write_tiny_janus


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_janus(tmp_path_factory.mktemp("hostile"), layers=1, hidden=32)


@pytest.fixture
def broken(janus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(janus, tmp_path / "broken"))


def open_policy(folder: Path) -> None:
    policy.checked_tensors(str(folder), policy.load_config(str(folder)))
    policy.PromptFormat(policy.load_tokenizer(str(folder)), PolicyConfig(path=str(folder)))


def header_of(size: int, content: bytes = b"{}") -> bytes:
    return size.to_bytes(8, "little") + content


BAD_WEIGHTS = {
    "an absurd header length": header_of(2**63),
    "a header longer than the file": header_of(1000),
    "a header that is no JSON": header_of(4, b"\xff\xfe{}"),
    "a tensor outside the file": header_of(64, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(64)),
    "a size that overflows": header_of(
        96, b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'.ljust(96)
    ),
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("content", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_hostile_safetensors_are_refused(content: bytes, broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(content)
    refused(lambda: open_policy(broken), "policy.path", "truncated or no checkpoint file")


@pytest.mark.parametrize(
    "change", ["missing", "shape", "int64", "float8", "scalar", "list in a .bin", "numbers in a .bin"]
)
def test_other_tensors_than_the_models_are_refused(change: str, broken: Path) -> None:
    tensors: dict[str, Any] = load_file(broken / "model.safetensors")
    head = tensors["lm_head.weight"]
    if change == "missing":
        del tensors["lm_head.weight"]
    elif change.endswith(".bin"):
        (broken / "model.safetensors").unlink()
        torch.save([head] if "list" in change else {"lm_head.weight": 3}, broken / "pytorch_model.bin")
    else:
        others = {"shape": head[1:], "int64": head.long(), "float8": head.to(torch.float8_e4m3fn), "scalar": head[0, 0]}
        tensors["lm_head.weight"] = others[change].contiguous()
    if not change.endswith(".bin"):
        save_file(tensors, broken / "model.safetensors")
    refused(lambda: open_policy(broken), "policy.path")


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"a": "../outside.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "/dev/zero"}}',
        '{"weight_map": {"a": "."}}',
        '{"weight_map": {"a": "config.json"}}',
        '{"weight_map": {"a": "absent.safetensors"}}',
        '{"weight_map": {"a": "pipe.safetensors"}}',
        '{"weight_map": {"a": 3, "b": "x"}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {}}',
        "{}",
        "[]",
        "{",
        "[" * 100_000,
        "\xff",
    ],
)
def test_an_index_names_files_of_its_folder_only(index: str, broken: Path) -> None:
    os.mkfifo(broken / "pipe.safetensors")
    shutil.copy(broken / "model.safetensors", broken.parent / "outside.safetensors")
    (broken / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    refused(lambda: read_tensors(broken, "policy.path"), "policy.path")


def test_links_to_devices_and_nowhere_are_refused_and_those_of_the_hub_cache_followed(broken: Path) -> None:
    weights = broken / "model.safetensors"
    blob = weights.rename(broken.parent / "blob")
    for target in ("/dev/zero", "/nowhere", "model.safetensors"):
        weights.symlink_to(target)
        refused(lambda: open_policy(broken), "policy.path")
        weights.unlink()
    weights.symlink_to(blob)
    open_policy(broken)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config", {"num_hidden_layers": 10**9}),
        ("text_config", {"hidden_size": 10**18}),
        ("text_config", {"num_attention_heads": 0}),
        ("text_config", "llama"),
        ("vision_config", {"num_hidden_layers": "many"}),
        ("vq_config", {"channel_multiplier": [1] * 5000}),
        ("vq_config", None),
        ("model_type", "x" * 5000),
        ("model_type", ["janus"]),
        ("model_type", "multi_modality"),
    ],
)
def test_a_hostile_model_configuration_is_refused(key: str, value: Any, broken: Path) -> None:
    raw = json.loads((broken / "config.json").read_text())
    raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
    (broken / "config.json").write_text(json.dumps(raw))
    if not (key == "vq_config" and value is None):  # null: the defaults, which the tensors do not fit
        refused(lambda: policy.load_config(str(broken)) and open_policy(broken), "policy.path")
    else:
        refused(lambda: open_policy(broken), "policy.path")


@pytest.mark.parametrize("shape", [(), (0, 2), (8, 2)])
def test_fused_attention_that_is_not_three_of_a_kind_is_refused(shape: tuple[int, ...]) -> None:
    name = "vision_model.vision_tower.blocks.0.attn.qkv.weight"
    refused(lambda: janus_layout.to_hf({name: torch.zeros(shape)}), "policy.path", name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        (
            "tokenizer.json",
            b'{"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}}',
        ),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"tokenizer_class": "TokenizersBackend", "model_max_length": "x"}'),
        ("tokenizer_config.json", b'{"tokenizer_class": "TokenizersBackend"}'),  # no special tokens
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "TokenizersBackend", "eos_token": "<unk>", "unk_token": "<unk>"}',
        ),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, "tokenizer_class": "Evil"}'),
    ],
)
def test_a_hostile_tokenizer_is_refused(
    name: str, change: bytes, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the checkpoint's code"))
    (broken / "evil.py").write_text("raise SystemExit('code from a checkpoint was run')")
    (broken / name).write_bytes(change)
    refused(lambda: open_policy(broken), "policy.path")


def test_a_path_that_is_absurd_is_refused() -> None:
    for path in ("x" * 5000, "a\0b", "a\nb", ""):
        refused(lambda path=path: policy.load_config(path), "policy.path")
