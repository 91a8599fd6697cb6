"""The README's commands as somebody types them who has just installed the package: as printed, with fewer steps."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
STEPS = 3
SMALLER = {
    "t2ir1_ray.train": [
        *(f"train.steps={STEPS}", "data.prompts_per_step=4", "rollout.prompts_per_call=2"),
        *(f"eval.every={STEPS}", "eval.count=24"),
    ],
    "t2ir1_ray.evaluate": ["--limit", "4"],
}
"""What is added to a command, by its module."""


def commands() -> list[str]:
    """Lines of the README's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def prepared(command: str) -> list[str]:
    """The command with this Python, for runs of STEPS steps."""
    words = shlex.split(command.replace("step_000120", f"step_{STEPS:06d}"))
    if words[0] == "python":
        return [sys.executable, *words[1:], *SMALLER.get(words[2], [])]
    return [str(Path(sys.executable).parent / words[0]), *words[1:]]


def train_as_printed(folder: Path) -> None:
    """Run the first training command in a new folder; `dashboard.html` is what Ray's dashboard showed meanwhile, and
    `series.json` what Prometheus has scraped, if this machine has it."""
    folder.mkdir()
    (train,) = (line for line in commands() if line.startswith("python -m t2ir1_ray.train train.seed=0"))
    log = folder / "train.log"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "RAY_metrics_report_interval_ms": "500"}
    with running(prepared(train), log, cwd=folder, env=env) as process:
        while not (said := re.search(r"Ray dashboard (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        (folder / "dashboard.html").write_text(wait_for_page(said[1], process, log))
        (session,) = Path("/tmp/ray").glob(f"session_*_{process.pid}")
        with scraping(session, folder) if shutil.which("prometheus") else nullcontext():
            assert process.wait(300) == 0, log.read_text()[-2000:]
    assert "Traceback" not in log.read_text()


@contextmanager
def scraping(session: Path, folder: Path) -> Iterator[None]:
    """Debian's Prometheus, on the file in which a cluster says where its metrics are; in the end it writes which series
    of ours it has found. session: the folder of the cluster's head."""
    port = free_port()
    targets = [str(session / "prom_metrics_service_discovery.json")]
    jobs = [{"job_name": "ray", "file_sd_configs": [{"files": targets, "refresh_interval": "1s"}]}]
    settings = folder / "prometheus.yml"
    settings.write_text(json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": jobs}))  # JSON is YAML
    command = ["prometheus", f"--config.file={settings}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    with running([*command, f"--web.listen-address=127.0.0.1:{port}"], folder / "prometheus.log"):
        yield
        query = urllib.parse.urlencode({"match[]": '{__name__=~"ray_t2ir1_.+"}'})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/series?{query}", timeout=30) as answer:
            (folder / "series.json").write_text(json.dumps(json.load(answer)["data"]))


@contextmanager
def running(words: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen]:
    """A process whose output goes to `log`; ended, with all that it started, when the block is left."""
    with log.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_page(url: str, process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as page:
                return page.read().decode()
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no page at {url}: {log.read_text()[-2000:]}")
