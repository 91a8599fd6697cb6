"""Ray's cluster launcher on machines that are there (`provider: local`): they have sshd, and the laptop their key."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.laboratory.machines import Laboratory, Machine

ROOT = Path(__file__).parents[2]
HOME = Path("/root")
SSHD = Path("/usr/sbin/sshd")
SETTINGS = """
HostKey {folder}/host_key
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
PidFile none
StrictModes no
"""


class Launcher:
    """Machines with a home of root's own each, and the rendered `cluster.yaml` in the laptop's."""

    def __init__(self, laboratory: Laboratory, laptop: Machine, head: Machine, workers: Sequence[Machine]):
        self.laptop, self.workers = laptop, workers
        keys = laboratory.folder / "ssh"
        keys.mkdir()
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("host_key", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
        (keys / "sshd_config").write_text(SETTINGS.format(folder=keys))
        token = (laptop.folder / "home" / ".ray" / "auth_token").read_text()
        for machine in (laptop, head, *workers):
            if machine.on:
                machine.switch_off()
            home = machine.folder / "private" / "root"
            (home / ".ssh").mkdir(parents=True)
            (home / ".ssh" / "authorized_keys").write_text((keys / "id.pub").read_text())
            machine.boot(laboratory.hosts(machine), private=[HOME])
            if machine is not laptop:
                machine.start(str(SSHD), "-D", "-f", str(keys / "sshd_config"), stdout=subprocess.DEVNULL)
        home = laptop.folder / "private" / "root"
        for name, text in {".ray/auth_token": token, ".ssh/id": (keys / "id").read_text()}.items():
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).write_text(text)
            (home / name).chmod(0o600)
        self.head, self.folder = head, home

    def render(self, config: Path, *, cpus: int) -> None:
        """The files of a cluster for this configuration; cpus: that each worker offers."""
        site = {
            "head_ip": self.head.address,
            "worker_ips": ",".join(machine.address for machine in self.workers),
            "user": "root",
            "key": str(HOME / ".ssh" / "id"),
            "bin": str(Path(sys.executable).parent),
            "ray_start": f"--num-cpus={cpus}",
        }
        settings = [word for name, value in site.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "deploy.render", "--config", str(config), "--target", "local", *settings]
        subprocess.run([*command, "--out", str(self.folder)], cwd=ROOT, check=True, capture_output=True)
        for name in ("cluster.yaml", "config.yaml"):
            assert "REPLACE" not in (self.folder / name).read_text()

    def start(self, *command: str, **options: object) -> subprocess.Popen:
        """A command of the laptop's, in root's home, with what the README says to set."""
        env = {"HOME": str(HOME), "RAY_UP_enable_autoscaler_v2": "0"}
        shell = ["sh", "-c", 'cd "$0" && exec "$@"', str(HOME)]
        return self.laptop.start(*shell, *command, env=env, **options)

    def run(self, *command: str, timeout: float = 240, input: str = "") -> str:
        """Its output; it must succeed. input: what is typed."""
        with self.start(*command, stdin=subprocess.PIPE) as process:
            output = process.communicate(input, timeout=timeout)[0]
        assert process.returncode == 0, f"{' '.join(command)}: exit code {process.returncode}:\n{output}"
        return output
