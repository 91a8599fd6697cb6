"""Machines as namespaces of this one: each has its own network, processes, host name, home, /tmp/ray and /dev/shm.

They share the file system besides, unless a folder is made private. Needs root, iproute2 and util-linux; leaves no
process, mount or interface behind.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import psutil

BRIDGE = "t2lab"
NETWORK = "10.78.0."
BOOT = """
set -e
mount --make-rprivate /
hostname {name}
mount --bind {folder}/ray /tmp/ray
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs -o size={shared_mb}m tmpfs /dev/shm
for path in {private}; do
    mkdir -p {folder}/private$path
    case {python} in  # which may lie there
        $path/*) mkdir -p {folder}/private{python}; mount --bind {python} {folder}/private{python} ;;
    esac
    mount --rbind {folder}/private$path $path
done
ip link set lo up
trap '' CHLD  # whoever ends here leaves no zombie
touch {folder}/booted
exec sleep infinity
"""


class Machine:
    """One of a laboratory's machines, off until `boot`."""

    def __init__(self, folder: Path, number: int, name: str, token: str | None):
        self.folder, self.name, self.address = folder, name, f"{NETWORK}{10 + number}"
        self._link = f"{BRIDGE}{number}"
        (folder / "home" / ".ray").mkdir(parents=True)
        (folder / "ray").mkdir()
        if token:
            file = folder / "home" / ".ray" / "auth_token"
            file.write_text(token)
            file.chmod(0o600)

    def boot(self, hosts: str, private: Sequence[Path] = (), shared_mb: int = 2048) -> None:
        """hosts: /etc/hosts; private: folders of its own; shared_mb: size of /dev/shm."""
        (self.folder / "hosts").write_text(hosts)
        (self.folder / "booted").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "ray")
        (self.folder / "ray").mkdir()
        own = " ".join(map(str, private))
        script = BOOT.format(
            name=self.name, folder=self.folder, shared_mb=shared_mb, private=own, python=sys.base_prefix
        )
        spaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        command = ["unshare", *spaces, "bash", "-c", script]
        self._shell = subprocess.Popen(command, start_new_session=True, stderr=(self.folder / "boot.log").open("w"))
        wait_until((self.folder / "booted").exists, 30)
        (first,) = psutil.Process(self._shell.pid).children()
        self._first = first.pid
        _do("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self._first))
        _do("ip", "link", "set", self._link, "master", BRIDGE, "up")
        _do("nsenter", "-t", str(self._first), "-n", "ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        _do("nsenter", "-t", str(self._first), "-n", "ip", "link", "set", "eth0", "up")

    def start(self, *command: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen:
        """A command on this machine, in a clean environment; its output is text."""
        enter = ["nsenter", "-t", str(self._first), "--net", "--mount", "--pid", "--uts", "--ipc"]
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = {
            "HOME": str(self.folder / "home"),
            "PATH": path,
            "LANG": "C.UTF-8",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        words = [*enter, "env", "-i", *(f"{name}={value}" for name, value in variables.items()), *command]
        return subprocess.Popen(words, **pipes | options)

    def run(self, *command: str, timeout: float = 120, **options: Any) -> str:
        """The output of a command that must succeed."""
        with self.start(*command, **options) as process:
            output = process.communicate(timeout=timeout)[0]
        if process.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)[:200]}: exit code {process.returncode}:\n{output}")
        return output

    def switch_off(self) -> None:
        """As by its plug: the network first, so that nobody hears of it, then every process."""
        _do("ip", "link", "set", self._link, "down")
        os.kill(self._first, signal.SIGKILL)
        self._shell.wait(30)
        # By itself it goes some time after the last process, so that it may be gone already.
        subprocess.run(["ip", "link", "del", self._link], check=False, capture_output=True)

    @property
    def on(self) -> bool:
        return hasattr(self, "_shell") and self._shell.poll() is None


class Laboratory:
    """A bridge and machines on it. Leaving the context ends all of it."""

    def __init__(self, names: Sequence[str]):
        self.folder = Path(tempfile.mkdtemp(prefix="t2lab-"))
        self.shared = self.folder / "shared"
        self.shared.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)
        token = secrets.token_hex(32)
        self.machines = [
            Machine(self.folder / name, number, name, token if name != "stranger" else None)
            for number, name in enumerate(names)
        ]

    def hosts(self, machine: Machine, debian: bool = False) -> str:
        """/etc/hosts of a machine. debian: its own name is 127.0.1.1, as the installer writes it."""
        lines = ["127.0.0.1 localhost", *(["127.0.1.1 " + machine.name] if debian else [])]
        return (
            "\n".join([*lines, *(f"{m.address} {m.name}" for m in self.machines if m != machine or not debian)]) + "\n"
        )

    def __enter__(self) -> Self:
        _do("ip", "link", "add", BRIDGE, "type", "bridge")
        _do("ip", "addr", "add", f"{NETWORK}1/24", "dev", BRIDGE)
        _do("ip", "link", "set", BRIDGE, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            if machine.on:
                machine.switch_off()
        _do("ip", "link", "del", BRIDGE)
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.1)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
