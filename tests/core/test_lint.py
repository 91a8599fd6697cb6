"""ruff has nothing to say."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff(command: str) -> None:
    ruff = [sys.executable, "-m", "ruff", *command.split(), "--quiet", "."]
    ended = subprocess.run(ruff, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
