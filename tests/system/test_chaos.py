"""Two minutes of `tests.chaos`: real kills at random moments, the same journal in the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # two minutes on an idle machine


def test_random_kills_change_nothing() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "1", "--seed", "4", "--faults", "4"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["injected"] >= 4
    assert result["survived"] == result["injected"]
