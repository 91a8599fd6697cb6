"""One run of `tests.chaos`: real kills at random moments, the same journal in the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.runs import small_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # one minute on an idle machine
ROOT = Path(__file__).parents[2]


def test_random_kills_change_nothing(tmp_path: Path) -> None:
    """An actor is killed, and the job; what is then on the disk may be damaged. Longer rounds are for the command."""
    config = tmp_path / "small.yaml"
    small_config(config)
    command = [sys.executable, "-m", "tests.chaos", "--config", str(config), "--minutes", "0", "--seed", "8"]
    done = subprocess.run([*command, "--faults", "2"], cwd=ROOT, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["injected"] >= 2
    assert result["survived"] == result["injected"]
