"""One process writes a folder: a living one is in the way of a second, a dead one is not, wherever it ran."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2ir1_ray import config, generate
from t2ir1_ray.errors import RunError, UserError
from t2ir1_ray.journal.journal import Journal
from t2ir1_ray.storage import OneWriter, one_writer
from t2ir1_ray.storage.one_writer import FILE

HOLD = "import sys, pathlib, time; from t2ir1_ray.storage import OneWriter; "
HOLD += "writer = OneWriter(pathlib.Path(sys.argv[1]), 'x'); print('held', flush=True); time.sleep(600)"
ELSEWHERE = {
    "host": "node-7",
    "pid": 4711,
    "started": "2026-01-01 10:00:00",
    "since": "2026-01-01 10:00:05",
    "boot": "b",
}


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that writes `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_writer, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(one_writer, "SILENCE_S", 0.6)


def left_by(folder: Path, holder: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(holder if isinstance(holder, str) else json.dumps(holder))


def test_who_lives_is_named_and_who_was_killed_is_no_hindrance(tmp_path: Path, holder: subprocess.Popen) -> None:
    with pytest.raises(UserError) as error:
        OneWriter(tmp_path, "--out")
    assert str(error.value).startswith(f"--out: {tmp_path} is being written by process {holder.pid} on host ")
    assert socket.gethostname() in str(error.value)
    assert "writing since 20" in str(error.value)
    holder.kill()
    holder.wait()
    said: list[str] = []
    begin = time.monotonic()
    OneWriter(tmp_path, "--out", said.append).release()
    assert time.monotonic() - begin < one_writer.SILENCE_S  # the lock alone decides
    assert len(said) == 1
    assert f"process {holder.pid} " in said[0]
    assert "is dead" in said[0]


@pytest.mark.parametrize("door", ["resume", "new run", "generate"])
def test_every_folder_that_is_written_has_one_writer(door: str, tmp_path: Path, holder: subprocess.Popen) -> None:
    doors = {
        "resume": lambda: Journal(tmp_path, config.load("shapes"), resume=True),
        "new run": lambda: Journal(tmp_path, config.load("shapes")),
        "generate": lambda: generate.new_folder(tmp_path),
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=f"being written by process {holder.pid} on host"):
        doors[door]()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("left", [ELSEWHERE, {"host": "pod-x"}, "{torn", "[1]", {"host": ["a\nb"], "pid": {}}])
def test_the_silent_writer_of_another_host_is_dead(left: object, tmp_path: Path) -> None:
    left_by(tmp_path, left)
    said: list[str] = []
    OneWriter(tmp_path, "--out", said.append).release()
    assert "waiting 0.6 s for its heartbeat" in said[0]
    assert "is dead: going on" in said[1]
    assert not any("\n" in line for line in said)
    assert not (tmp_path / FILE).exists()


def test_an_old_heartbeat_is_not_waited_for(tmp_path: Path) -> None:
    left_by(tmp_path, ELSEWHERE)
    os.utime(tmp_path / FILE, (1e9, 1e9))
    said: list[str] = []
    OneWriter(tmp_path, "--out", said.append).release()
    assert len(said) == 1
    assert "process 4711 on host node-7 (started 2026-01-01 10:00:00" in said[0]


@pytest.mark.parametrize("clock", [0.0, -300.0, 300.0])
def test_a_heart_that_beats_on_another_host_is_heeded_whatever_its_clock(clock: float, tmp_path: Path) -> None:
    left_by(tmp_path, ELSEWHERE)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            os.utime(tmp_path / FILE, (time.time() + clock,) * 2)

    threading.Thread(target=beat, daemon=True).start()
    with pytest.raises(UserError, match="process 4711 on host node-7 .*has a heartbeat"):
        OneWriter(tmp_path, "--out", lambda _: None)
    stop.set()


def test_without_locks_the_heartbeat_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_writer, "_lock", lambda _: False)
    first = OneWriter(tmp_path, "--out")
    with pytest.raises(UserError, match=f"process {os.getpid()} on host .* has a heartbeat"):
        OneWriter(tmp_path, "--out", lambda _: None)
    first.release()
    OneWriter(tmp_path, "--out", pytest.fail).release()


def test_who_was_frozen_and_lost_its_folder_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = OneWriter(tmp_path, "--out")
    frozen.check()
    left_by(tmp_path, {**ELSEWHERE, "token": "other"})
    with pytest.raises(RunError, match="process 4711 on host node-7 .* has taken this folder over"):
        frozen.check()
    frozen.release()
    assert (tmp_path / FILE).exists()  # it is the other's


def test_who_has_released_leaves_no_trace(tmp_path: Path) -> None:
    for _ in range(3):
        with OneWriter(tmp_path / "new" / "folder", "--out", pytest.fail):
            assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [FILE]
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"--out: .*file/x cannot be written \(Not a directory\): choose another folder"
    ):
        OneWriter(tmp_path / "file" / "x", "--out")
