"""Files that stay are whole or as they were, whoever writes them and whatever the disk does."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from t2ir1_ray import config, generate
from t2ir1_ray.errors import RunError
from t2ir1_ray.loop.timeline import Timeline
from t2ir1_ray.storage import AppendedLines, whole_file, write_whole

ROOM = 300
"""Bytes that a file may have: a disk that is full behind them."""
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture
def small_disk() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def parquet(path: Path) -> None:
    with whole_file(path) as file:
        pq.write_table(pa.table({"x": np.arange(10_000)}), file)


def trace(path: Path) -> None:
    timeline = Timeline()
    for step in range(100):
        with timeline("learn", step):
            pass
    timeline.write(path, {})


def grid(path: Path) -> None:
    records = [{"image": "seen.png", "prompt": "a ring", "plan": "a plan"}]
    generate.write_grid(path.parent, records, columns=1)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text.json": lambda path: write_whole(path, "x" * 2 * ROOM),
    "image.png": lambda path: generate.save_png(path, NOISE, {"prompt": "a ring"}),
    "grid.png": grid,
    "dump.parquet": parquet,
    "trace.json": trace,
    "config.yaml": lambda path: config.save(config.load("shapes"), path),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_full_disk_ends_with_one_line_and_leaves_what_was_there(
    name: str, before: bytes | None, tmp_path: Path, small_disk: None
) -> None:
    path = tmp_path / name
    Image.new("1", (8, 8)).save(tmp_path / "seen.png")
    if before:
        path.write_bytes(before)
    with pytest.raises(RunError, match=rf"{name}: [^\n]*File too large[^\n]*$"):
        WRITERS[name](path)
    assert (path.read_bytes() if path.exists() else None) == before
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_gone_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"x.json: File exists: [^\n]*$"):
        write_whole(tmp_path / "file" / "x.json", "{}")


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole_file(tmp_path / "x.bin") as file:
            file.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path, small_disk: None) -> None:
    lines = AppendedLines(tmp_path / "results.jsonl")

    def fill() -> None:
        for number in range(99):
            lines.append(json.dumps({"number": number, "text": "é" * 20}))

    with pytest.raises(RunError, match=r"results.jsonl: File too large"):
        fill()
    lines.close()
    written = [json.loads(line)["number"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert written == list(range(len(written)))
    assert len(written) > 1
