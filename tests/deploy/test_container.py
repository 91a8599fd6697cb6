"""The container file: a linter's opinion, and that it has what the code needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Containerfile").read_text()
HADOLINT = Path(sys.executable).parent / "hadolint"


def hadolint(text: str) -> str:
    program = str(HADOLINT) if HADOLINT.exists() else "hadolint"
    return subprocess.run([program, "-"], input=text, capture_output=True, text=True).stdout


def test_the_linter_has_nothing_against_it() -> None:
    assert not hadolint(TEXT)


@pytest.mark.parametrize(
    "text", ["FROM debian:latest\n", "FROM debian:12-slim\nRUN cd /tmp && apt-get install curl\n", "FORM debian:12\n"]
)
def test_a_broken_file_is_found(text: str) -> None:
    assert hadolint(text)


def test_what_it_copies_exists_and_is_in_the_context() -> None:
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", TEXT, re.M) for word in line.split()]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"pyproject.toml", "t2ir1_ray", "deploy"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists()
        assert path.split("/")[0] in allowed


def test_it_has_the_packages_that_the_code_was_found_to_need() -> None:
    assert {"libnuma1", "rsync", "procps", "g++", "python3-dev"} <= set(TEXT.split())
    assert "RAY_AUTH_MODE=token" in TEXT


def test_root_is_left_alone() -> None:
    """`ray up` mounts the token for root: a USER would not read it."""
    assert not re.search(r"^USER ", TEXT, re.M)
