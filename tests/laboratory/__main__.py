"""`python -m tests.laboratory [CASE ...]`: a cluster of a head and two workers, and jobs that come from a laptop.

Every case prints a line with what it found and how long it took; the journals of all runs are compared with that of
one on this machine alone. The exit code is 1 if a case fails. As root, with iproute2; the launcher's
case needs openssh-server and rsync.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.laboratory.launcher import SSHD, Launcher
from tests.laboratory.machines import Laboratory, Machine, wait_until
from tests.system.runs import STEPS, assert_same_metrics, has_done, metrics, small_config

ROOT = Path(__file__).parents[2]
COUNT = """
import ray
ray.init(address="auto", log_to_driver=False)
print("nodes", sum(node["Alive"] for node in ray.nodes()))
"""
AHEAD = """
import time
now, now_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: now() + 90, lambda: now_ns() + 90 * 10**9
"""
PORT, JOBS = 6379, 8265


class Cluster:
    """Ray on the machines head, one and two; the laptop has the token, the stranger has not."""

    def __init__(self, laboratory: Laboratory):
        self.laboratory = laboratory
        self.head, self.one, self.two, self.laptop, self.stranger = laboratory.machines
        self.runs = laboratory.shared / "runs"
        self.runs.mkdir()
        self.file = laboratory.shared / "small.yaml"
        small_config(self.file)

    def up(self, machine: Machine, cpus: float = 1, env: dict[str, str] | None = None, **boot: object) -> None:
        """Boot a machine if it is off, and start Ray there."""
        if not machine.on:
            machine.boot(self.laboratory.hosts(machine, debian=True), **boot)
        place = [f"--node-ip-address={machine.address}", "--object-store-memory=500000000"]
        if machine is self.head:
            place += ["--head", f"--port={PORT}", "--num-cpus=0", f"--dashboard-host={machine.address}"]
        else:
            place += [f"--address={self.head.address}:{PORT}", f"--num-cpus={cpus:g}"]
        machine.run("ray", "start", *place, "--num-gpus=0", env=env)

    def anew(self, cpus: float = 1, only_one: bool = False) -> None:
        """Head and workers freshly booted."""
        for machine in (self.head, self.one, self.two):
            if machine.on:
                machine.switch_off()
        for machine in (self.head, self.one) if only_one else (self.head, self.one, self.two):
            self.up(machine, cpus)

    def submit(self, machine: Machine, *words: str) -> "Job":
        return Job(self, machine, words)

    def train(self, name: str, *overrides: str) -> "Job":
        """A job of the laptop's that trains in the shared folder, or goes on there."""
        run = self.runs / name
        begun = run.exists()
        new = ["--config", str(self.file), f"train.steps={STEPS}", f"journal.root={self.runs}", f"journal.name={name}"]
        return self.submit(
            self.laptop, "python", "-m", "t2ir1_ray.train", *(["--resume", str(run)] if begun else new), *overrides
        )


class Job:
    """`ray job submit` on a machine: it shows the job's output, and ends with it."""

    def __init__(self, cluster: Cluster, machine: Machine, words: Sequence[str]):
        self.log = machine.folder / f"job-{time.monotonic_ns()}.log"
        address = f"http://{cluster.head.address}:{JOBS}"
        command = ["ray", "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", *words]
        self.process = machine.start(*command, stdout=self.log.open("w"), cwd=ROOT)

    def said(self) -> str:
        return self.log.read_text()

    def says(self, words: str, seconds: float) -> None:
        """Wait until the job has said something."""
        with suppress(TimeoutError):
            wait_until(lambda: words in self.said() or self.process.poll() is not None, seconds)
        assert words in self.said(), self.said()

    def end(self, seconds: float = 400) -> int:
        return self.process.wait(seconds)

    def error(self) -> str:
        """The one line with which it ended; Ray repeats the end of a failed job's log."""
        assert self.end() != 0, self.said()
        (line,) = set(re.findall(r"^error: .*$", self.said(), re.MULTILINE))
        assert "Traceback" not in self.said()
        return line

    def succeed(self) -> None:
        assert self.end() == 0, self.said()


def late_node(cluster: Cluster) -> str:
    """A stranger's job is refused; the laptop's begins while the second worker is not there yet."""
    cluster.anew(only_one=True)
    stranger = cluster.submit(cluster.stranger, "true")
    assert stranger.end() != 0
    assert "token" in stranger.said().lower(), stranger.said()
    job = cluster.train("late")
    job.says("the cluster has too few CPUs (1 of 1.7): waiting", 120)
    cluster.up(cluster.two)
    job.succeed()
    return same(cluster, "late")


def node_back(cluster: Cluster) -> str:
    """The worker of the rollout actor loses its power in mid-step, and comes back."""
    job, lost, said = lose_rollouts(cluster, "back")
    cluster.up(lost)
    job.succeed()
    back = re.search(r"rollout 0: is up again.*", job.said())
    assert back, job.said()
    return f"{same(cluster, 'back')}; {said}; {back[0]}"


def node_gone(cluster: Cluster) -> str:
    """It does not come back: the run ends with a line, and goes on as another job when it does."""
    job, lost, _ = lose_rollouts(cluster, "gone", "cluster.node_timeout_s=20")
    error = job.error()
    assert "for longer than cluster.node_timeout_s=20" in error, error
    assert error.endswith(f"go on with --resume {cluster.runs / 'gone'}")
    cluster.up(lost)
    again = cluster.train("gone")
    again.succeed()
    return f"{same(cluster, 'gone')}; {error}"


def head_gone(cluster: Cluster) -> str:
    """The head, with the driver, loses its power; a new cluster goes on."""
    cluster.anew()
    job = cluster.train("head")
    wait_until(lambda: has_done(cluster.runs / "head", 3), 240)
    cluster.head.switch_off()
    job.process.kill()
    cluster.anew()
    cluster.train("head").succeed()
    return same(cluster, "head")


def two_ranks(cluster: Cluster) -> str:
    """A learner rank on each worker, whose names are 127.0.1.1 to themselves."""
    cluster.anew(cpus=2)
    job = cluster.train("ranks", "learner.ranks=2", "learner.num_cpus=1.5", "rollout.num_cpus=0.5")
    job.succeed()
    return same(cluster, "ranks", tolerance=1e-5)


def no_shared_disk(cluster: Cluster) -> str:
    cluster.anew(only_one=True)
    cluster.up(cluster.two, private=[cluster.laboratory.shared])
    error = cluster.train("unshared").error()
    assert f"node {cluster.two.address} (two): journal.root" in error, error
    assert "is not the folder that the driver sees" in error, error
    return error


def clocks(cluster: Cluster) -> str:
    """To Python on the second worker it is 90 s later; Ray's own processes read the machine's clock."""
    cluster.anew(only_one=True)
    ahead = cluster.laboratory.folder / "ahead"
    ahead.mkdir()
    (ahead / "sitecustomize.py").write_text(AHEAD)
    cluster.up(cluster.two, env={"PYTHONPATH": str(ahead)})
    cluster.train("clocks").succeed()
    return f"{same(cluster, 'clocks')}; {asked(cluster, 'its clock differs by')}"


def doctor(cluster: Cluster) -> str:
    """As a job: what it says of each node, and of the way between them."""
    cluster.anew(only_one=True)
    cluster.up(cluster.two, shared_mb=64)
    return asked(cluster, "node ")


def launcher(cluster: Cluster) -> str:
    """`ray up` to `ray down` over ssh, by the rendered files: a script, a shell on the head, and a run as a job."""
    if not SSHD.exists():
        return "left out: apt-get install openssh-server"
    ray = Launcher(cluster.laboratory, cluster.laptop, cluster.head, [cluster.one, cluster.two])
    ray.render(cluster.file, cpus=1)
    begin = time.monotonic()
    ray.run("ray", "up", "--yes", "cluster.yaml")
    (ray.folder / "count.py").write_text(COUNT)
    wait_until(lambda: "nodes 3" in ray.run("ray", "submit", "cluster.yaml", "count.py"), 60)
    seconds = time.monotonic() - begin
    shell = ray.run("ray", "attach", "cluster.yaml", input="hostname; ray status; exit\n")
    assert "head" in shell.split()
    assert "0.0/2.0 CPU" in shell, shell
    with ray.start("ray", "dashboard", "cluster.yaml", stdout=subprocess.DEVNULL, stdin=subprocess.PIPE) as tunnel:
        job = [str(ROOT / "deploy" / "run.sh"), str(cluster.runs / "launched"), "--config", str(cluster.file)]
        where = ["--address", "http://127.0.0.1:8265", "--", *job, f"train.steps={STEPS}"]
        wait_until(lambda: ray.start("ray", "job", "list", *where[:2]).wait() == 0, 60)
        ray.run("ray", "job", "submit", *where, timeout=400)
        tunnel.terminate()
    ray.run("ray", "down", "--yes", "cluster.yaml")
    for machine in (cluster.one, cluster.two):
        machine.run("ray", "stop")
    for machine in (cluster.head, cluster.one, cluster.two):
        assert "raylet" not in machine.run("ps", "ax")
    return f"{same(cluster, 'launched')}; three nodes up in {seconds:.0f} s"


CASES: dict[str, Callable[[Cluster], str]] = {
    case.__name__.replace("_", "-"): case
    for case in (late_node, node_back, node_gone, head_gone, two_ranks, no_shared_disk, clocks, doctor, launcher)
}


def lose_rollouts(cluster: Cluster, name: str, *overrides: str) -> tuple[Job, Machine, str]:
    """A run whose rollout actor's worker is switched off behind step 2: the job, the worker, and what was said."""
    cluster.anew()
    job = cluster.train(name, *overrides)
    wait_until(lambda: has_done(cluster.runs / name, 2), 240)
    lost = next(machine for machine in (cluster.one, cluster.two) if "RolloutActor" in machine.run("ps", "ax"))
    lost.switch_off()
    job.says("rollout 0: RESTARTING because its node", 200)
    return job, lost, re.search(r"rollout 0: RESTARTING because.*", job.said())[0]


def asked(cluster: Cluster, words: str) -> str:
    """The doctor's lines with these words."""
    job = cluster.submit(
        *(cluster.laptop, "python", "-m", "t2ir1_ray.doctor", "--network", "--config", str(cluster.file)),
        f"journal.root={cluster.runs}",
    )
    job.end()
    lines = [line for line in job.said().splitlines() if words in line and re.match("ok |warn |FAIL ", line)]
    assert lines, job.said()
    return "".join(f"\n    {line}" for line in lines)


def same(cluster: Cluster, name: str, tolerance: float = 0) -> str:
    """Compare a run's journal with that of the run on this machine."""
    assert_same_metrics(metrics(cluster.runs / "alone"), metrics(cluster.runs / name), tolerance)
    return "journal equal to the last bit" if tolerance == 0 else f"journal equal within {tolerance:g}"


def alone(cluster: Cluster) -> None:
    """The run that all others are compared with."""
    place = [f"journal.root={cluster.runs}", "journal.name=alone", f"train.steps={STEPS}", "cluster.dashboard=false"]
    command = [sys.executable, "-m", "t2ir1_ray.train", "--config", str(cluster.file), *place]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    subprocess.run(command, env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main(names: Sequence[str]) -> int:
    failed = 0
    with Laboratory(["head", "one", "two", "laptop", "stranger"]) as laboratory:
        cluster = Cluster(laboratory)
        alone(cluster)
        for machine in (cluster.laptop, cluster.stranger):
            machine.boot(laboratory.hosts(machine))
        for name in names:
            begin = time.monotonic()
            try:
                found = CASES[name](cluster)
            except (AssertionError, RuntimeError, TimeoutError, subprocess.SubprocessError, ValueError) as error:
                failed += 1
                found = f"FAILED: {error}"
            print(f"{name} ({time.monotonic() - begin:.0f} s): {found}", flush=True)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.laboratory", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all of them if none is named")
    chosen = parser.parse_args().cases
    if unknown := set(chosen) - CASES.keys():
        parser.error(f"unknown: {', '.join(unknown)}")
    if os.geteuid() or shutil.which("ip") is None:
        parser.error("needs root and iproute2")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that machines are switched off
    sys.exit(bool(main(chosen or list(CASES))))
