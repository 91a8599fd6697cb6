"""`make test` as it is, over a folder of tests that die, hang, skip and pass: each is named with its result."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DYING = """
import os

def test_before(): pass
def test_aborts(): os.abort()
def test_between(): pass
def test_exits(): os._exit(0)
def test_behind(): pass
"""

HANGING = """
import ctypes, signal, time, pytest

@pytest.fixture
def ending_late():
    yield
    time.sleep(99)

def test_sleeps(): time.sleep(99)
def test_behind_sleep(): pass
def test_hangs_in_c():  # where neither a signal nor another thread of Python reaches it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    ctypes.PyDLL(None).sleep(99)
def test_fails_and_ends_late(ending_late): assert False
def test_behind_all(): pass
"""

PASSING = """
import os, pathlib, time, pytest

@pytest.mark.parametrize("number", range(6))
def test_passes(number, request):
    time.sleep(0.1)
    with (request.path.parent / "processes").open("a") as file:
        file.write(f"{os.getpid()}\\n")
"""

SKIPPING = """
import pytest

def test_skips(): pytest.skip("no such machine")
@pytest.mark.skip(reason="not today")
def test_is_marked(): pass
@pytest.mark.skip(reason="named in allowed_skips")
def test_is_allowed(): pass
@pytest.mark.xfail
def test_is_known_to_fail(): assert False
"""


def make_test(folder: Path, *args: str, **files: str) -> tuple[int, dict[str, str], str]:
    """`make test` with this interpreter in the place of .venv: its exit code, the result of each test, its output."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    command = ["timeout", "180", "make", "--assume-old=setup", "test", f"BIN={Path(sys.executable).parent}"]
    options = [folder, f"--config-file={ROOT / 'pyproject.toml'}", "-rfEpsx", "-p no:cacheprovider", *args]
    outer = ("PYTEST_", "MAKE", "MFLAGS")
    ended = subprocess.run(
        [*command, f"ARGS={' '.join(map(str, options))}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(outer)},
        capture_output=True,
        text=True,
    )
    results = re.findall(r"^([A-Z]+) .*::(\w+(?:\[\w+\])?)", ended.stdout, re.MULTILINE)
    return ended.returncode, {test: result for result, test in results}, ended.stdout + ended.stderr


@pytest.mark.slow
def test_deaths_and_hangs_cost_no_other_result(tmp_path: Path) -> None:
    timeouts = "--timeout=2", "-o faulthandler_timeout=4"
    code, results, output = make_test(tmp_path, *timeouts, dying=DYING, hanging=HANGING, passing=PASSING)
    failing = "test_aborts test_exits test_sleeps test_hangs_in_c test_fails_and_ends_late".split()
    passing = ["test_before", "test_between", "test_behind", "test_behind_sleep", "test_behind_all"]
    passing += [f"test_passes[{number}]" for number in range(6)]
    assert results == dict.fromkeys(failing, "FAILED") | dict.fromkeys(passing, "PASSED"), output
    assert code != 0
    assert len(set((tmp_path / "processes").read_text().split())) == 1, "a file stays in one worker"


def test_a_skip_fails_unless_it_is_allowed(tmp_path: Path) -> None:
    code, results, output = make_test(tmp_path, "-n 0", skipping=SKIPPING)
    assert (code, results) == (0, {"test_is_known_to_fail": "XFAIL"}), output
    allowed = "-o allowed_skips=test_skipping.py::test_is_allowed"
    code, results, output = make_test(tmp_path, "-n 0", "--no-skips", allowed, skipping=SKIPPING)
    assert code != 0
    expected = {"test_skips": "FAILED", "test_is_marked": "ERROR", "test_is_known_to_fail": "XFAIL"}
    assert results == expected, output


def test_a_file_that_skips_itself_fails(tmp_path: Path) -> None:
    code, _, output = make_test(tmp_path, "--no-skips", whole='import pytest\npytest.importorskip("no_such_module")')
    assert code != 0
    assert "could not import 'no_such_module'" in output
