"""What shells read: run.sh, the batch file, and every command list. And how run.sh behaves."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import deploy
from deploy.write_examples import RECIPES
from tests.deploy import checks

RUN = Path(deploy.__file__).parent / "run.sh"
SHELLCHECK = Path(sys.executable).parent / "shellcheck"
Rendered = dict[tuple[str, str], dict[str, str]]


def shellcheck(text: str, *options: str) -> str:
    """What bash and shellcheck have against a script."""
    syntax = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    program = [str(SHELLCHECK) if SHELLCHECK.exists() else "shellcheck", "--shell=bash", *options, "-"]
    found = subprocess.run(program, input=text, capture_output=True, text=True)
    return syntax.stderr + found.stdout + found.stderr


@pytest.mark.parametrize("name", [*RECIPES, "shapes"])
def test_scripts_are_clean(rendered: Rendered, name: str) -> None:
    assert not shellcheck(RUN.read_text())
    assert not shellcheck(rendered[name, "slurm"]["train.sbatch"])
    for target in ("aws", "gcp", "local"):
        [config] = checks.load(rendered[name, target]["cluster.yaml"])
        lists = [config[key] for key in (*checks.FIVE_LISTS, "initialization_commands")]
        text = "".join(f"{command}\n" for commands in lists for command in commands)
        # RAY_HEAD_IP is the launcher's; USER has no blanks; a line for ~/.bashrc is not to be expanded yet
        assert not shellcheck(text, "--exclude=SC2154,SC2086,SC2016")
    [task] = checks.load(rendered[name, "skypilot"]["task.yaml"])
    assert not shellcheck(task["setup"])
    assert not shellcheck(task["run"])


@pytest.mark.parametrize("text", ["if true; then\n", "rm -rf $1/*\n", "echo `ls`\n"])
def test_a_broken_script_is_found(text: str) -> None:
    assert shellcheck(text)


@pytest.mark.parametrize("name", [*RECIPES, "shapes"])
def test_the_batch_file_asks_for_what_the_configuration_needs(rendered: Rendered, name: str) -> None:
    text = rendered[name, "slurm"]["train.sbatch"]
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.M))
    gpus = {"janus_pro_7b": "8", "janus_pro_1b": "4", "shapes": None}[name]
    assert options.get("gpus-per-node") == gpus
    assert options["ntasks-per-node"] == "1"
    assert options["signal"].startswith("B:USR1@")
    assert {"requeue", "exclusive"} <= options.keys()
    assert text.index("umask 077") < text.index("/dev/urandom") < text.index("umask 022")
    assert f"--min-nodes={options['nodes']}" in text


@pytest.fixture
def world(tmp_path: Path) -> dict[str, str]:
    """An environment whose `python` says how it was called, and ends as the file `codes` says, line by line."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f"""#!{sys.executable}
import pathlib, signal, sys, time
here = pathlib.Path({str(tmp_path)!r})
with open(here / "calls", "a") as file:
    print(*sys.argv[1:], file=file)
codes = (here / "codes").read_text().split()
(here / "codes").write_text(" ".join(codes[1:]))
if codes[0] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    (here / "ready").touch()
    time.sleep(30)
sys.exit(int(codes[0]))
"""
    )
    python.chmod(0o755)
    return os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}", "T2IR1_RETRY_WAIT_S": "0"}


def run(world: dict[str, str], tmp_path: Path, codes: str, *arguments: str) -> tuple[int, list[str]]:
    (tmp_path / "codes").write_text(codes)
    (tmp_path / "calls").unlink(missing_ok=True)
    code = subprocess.run([RUN, *arguments], env=world, timeout=30, capture_output=True).returncode
    calls = tmp_path / "calls"
    return code, calls.read_text().splitlines() if calls.exists() else []


def test_a_run_begins_and_goes_on(world: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    same = f"journal.root={tmp_path}/runs journal.name=first --config shapes train.steps=3"
    arguments = (str(folder), "--config", "shapes", "train.steps=3")
    assert run(world, tmp_path, "0", *arguments) == (0, [f"-m t2ir1_ray.train {same}"])
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()  # empty: it was never written
    assert run(world, tmp_path, "1", *arguments) == (1, [f"-m t2ir1_ray.train {same}"])
    (folder / "config.yaml").write_text("x")
    assert run(world, tmp_path, "2", *arguments) == (2, [f"-m t2ir1_ray.train --resume {folder} {same}"])


def test_failures_are_repeated_and_bad_settings_are_not(world: dict[str, str], tmp_path: Path) -> None:
    world = world | {"T2IR1_RETRIES": "2"}
    assert run(world, tmp_path, "1 1 0", "runs/x")[0] == 0
    code, calls = run(world, tmp_path, "1 1 1 0", "runs/x")
    assert (code, len(calls)) == (1, 3)
    code, calls = run(world, tmp_path, "2 0", "runs/x")
    assert (code, len(calls)) == (2, 1)


@pytest.mark.parametrize("retries", ["0", "5"])
def test_a_stop_reaches_the_driver_and_is_final(world: dict[str, str], tmp_path: Path, retries: str) -> None:
    (tmp_path / "codes").write_text("wait 0")
    process = subprocess.Popen([RUN, "runs/x"], env=world | {"T2IR1_RETRIES": retries})
    until = time.monotonic() + 20
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 1
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_without_a_run_it_says_how_it_is_used(world: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "codes").write_text("0")
    result = subprocess.run([RUN], env=world, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("run.sh RUN ")
