"""Compiled libraries are tried in processes of their own, and vLLM's platform says which of its builds fits."""

import importlib.util
import re
import signal
import subprocess
from pathlib import Path

import pytest

from t2ir1_ray.fitting import libraries
from t2ir1_ray.fitting.libraries import try_to_load
from tests.cpu_kinds import BUILDS, CPU_KINDS, pretend

ROOT = Path(__file__).parents[2]
DEATHS = {
    "abort": ("import os; os.abort()", "killed by SIGABRT"),
    "illegal instruction": ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "killed by SIGILL"),
    "twice registered": (
        "import torch\nown = torch.library.Library('own_ops', 'DEF')\nfor _ in 'ab': own.define('op() -> ()')",
        "RuntimeError: .*own_ops",
    ),
    "missing symbol": ("raise ImportError('libfoo.so.1: undefined symbol: bar')", "undefined symbol: bar"),
    "exit": ("import os; os._exit(7)", "exit code 7"),
}


@pytest.fixture
def own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of a library that only this test's processes find."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path / "own_library.py"


@pytest.mark.parametrize("death", DEATHS)
def test_a_library_that_kills_its_interpreter_is_a_finding(death: str, own_library: Path) -> None:
    source, reason = DEATHS[death]
    own_library.write_text(source)
    importlib.invalidate_caches()
    loads, why = try_to_load("own_library")
    assert not loads
    assert re.search(reason, why), why
    assert "\n" not in why


def test_a_library_that_hangs_is_a_finding(own_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_library.write_text("import time; time.sleep(600)")
    importlib.invalidate_caches()
    monkeypatch.setattr(libraries, "TIMEOUT_S", 1)
    assert try_to_load("own_library") == (False, "no end within 1 s")


def test_what_is_not_installed_is_no_finding() -> None:
    assert try_to_load("no_such_library") is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", CPU_KINDS)
def test_each_kind_of_processor_loads_its_own_build(kind: str) -> None:
    """Another one beside it ends the interpreter: what the doctor did when it named the build itself."""
    other = next(build for build in BUILDS if build != CPU_KINDS[kind].build)
    code = "from t2ir1_ray.fitting.libraries import load\nprint(load('vllm'), flush=True)"
    done = pretend(kind, f"{code}\nimport vllm.{other.split('.')[0]}")
    assert done.stdout.split()[-1] == CPU_KINDS[kind].build, done.stderr
    assert done.returncode == -signal.SIGABRT


def test_nothing_names_a_compiled_extension() -> None:
    """Neither the product nor its tests: which build there is, and which one fits, the library's own loader knows."""
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = re.compile(r"(import|from|[\"'])\s*(vllm|torch|torchvision|deepspeed)\._C")
    guilty = [name for name in files.split() if named.search((ROOT / name).read_text())]
    assert not guilty
