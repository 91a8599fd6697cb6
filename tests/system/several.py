"""A Ray cluster of several nodes on this machine, in a process of its own; `python -m tests.system.several` is it.

Nodes have raylets, object stores, workers and temporary folders of their own, and share network and file system.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]
QUICK = {  # a node that is gone is noticed after 2 s instead of 14
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}


class Nodes:
    """A head that offers nothing, and the nodes that are added. Leaving the context ends every process of it."""

    def __init__(self, folder: Path):
        """folder: for the token, a home and what the nodes write beside their sessions."""
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env |= QUICK | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }
        self._log = (folder / "nodes.log").open("w")
        command = [sys.executable, "-m", "tests.system.several"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log, "text": True}
        self._host = subprocess.Popen(command, env=self.env, cwd=ROOT, start_new_session=True, **pipes)
        self._added: list[str] = []
        self.address = self._tell()["address"]

    def add(self, cpus: float, gpus: float = 0, **env_vars: str) -> str:
        """Add a node and wait until it is there; returns its id."""
        options = {"num_cpus": cpus, "num_gpus": gpus, "env_vars": {**os.environ, **env_vars}}
        self._added.append(self._ask({"add": options})["node"])
        return self._added[-1]

    def kill(self, node: str) -> None:
        """SIGKILL to everything that the node consists of."""
        self._ask({"kill": node})
        self._added.remove(node)

    def kill_added(self) -> None:
        """Leave the head alone."""
        for node in list(self._added):
            self.kill(node)

    def run(self, *command: str, **options: Any) -> subprocess.Popen:
        """Python as a driver of this cluster, with text pipes."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, "-u", *command], env=self.env, **pipes, **options)

    def connected(self, script: str) -> str:
        """The script, as one of a driver of this cluster."""
        return (
            f"import json, sys, ray\nray.init({self.address!r}, log_to_driver=False, logging_level='ERROR')\n{script}"
        )

    def script(self, text: str, *arguments: str, timeout: float = 120) -> Any:
        """What a script, as a driver of this cluster, prints as its last line, as JSON."""
        with self.run("-c", self.connected(text), *arguments, cwd=ROOT) as process:
            return answer(process, timeout)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(question), file=self._host.stdin, flush=True)
        return self._tell()

    def _tell(self) -> dict[str, Any]:
        line = self._host.stdout.readline()
        assert line, Path(self._log.name).read_text()
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._host.stdin.close()
        try:
            self._host.wait(60)
        finally:
            self._host.kill()
            self._log.close()


def answer(driver: subprocess.Popen, timeout: float) -> Any:
    """The last line that a script prints, as JSON."""
    output = driver.communicate(timeout=timeout)[0]
    assert driver.returncode == 0, output
    return json.loads(output.splitlines()[-1])


def main(lines: Sequence[str]) -> None:
    from ray.cluster_utils import Cluster

    answers, sys.stdout = sys.stdout, sys.stderr  # Ray prints
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {}
    print(json.dumps({"address": cluster.address}), file=answers, flush=True)
    for line in lines:
        question = json.loads(line)
        if "add" in question:
            node = cluster.add_node(object_store_memory=100 << 20, **question["add"])
            nodes[node.node_id] = node
            answer = {"node": node.node_id}
        else:
            node = nodes.pop(question["kill"])
            (raylet,) = node.all_processes["raylet"]
            workers = psutil.Process(raylet.process.pid).children(recursive=True)  # they would live on for a while
            cluster.remove_node(node, allow_graceful=False)
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            answer = {}
        print(json.dumps(answer), file=answers, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.stdin)
