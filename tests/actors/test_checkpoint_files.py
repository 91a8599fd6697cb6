"""What learner ranks have written must be seen by the process that calls it a checkpoint."""

from pathlib import Path

import pytest

from actors.agreement import check_seen
from t2ir1_ray.errors import RunError

WRITTEN = [{"config.json": 2, "learner/rank_0.pt": 7}, {"learner/rank_1.pt": 7}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in (WRITTEN[0] | WRITTEN[1]).items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * size)
    return tmp_path


def test_what_is_seen_is_accepted(folder: Path) -> None:
    check_seen(folder, WRITTEN)


def test_a_rank_that_writes_to_its_own_disk_is_named(folder: Path) -> None:
    (folder / "learner" / "rank_1.pt").unlink()
    with pytest.raises(RunError, match="^learner 1: learner/rank_1.pt, which it wrote to .*, is not seen here: use a "):
        check_seen(folder, WRITTEN)


def test_a_file_that_is_another_one_here_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{ }")
    with pytest.raises(RunError, match="^learner 0: config.json, .* has 3 bytes here instead of 2"):
        check_seen(folder, WRITTEN)
