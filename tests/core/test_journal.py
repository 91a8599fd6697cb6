"""A disk that fails: one line, and what was reported stays."""

from collections import namedtuple
from pathlib import Path

import pytest

from t2ir1_ray import config as configuration
from t2ir1_ray.errors import RunError, UserError
from t2ir1_ray.journal import journal
from t2ir1_ray.journal.journal import METRICS, Journal

LINE = {"step": 1, "reward/mean": 0.5, "kl": 0.0} | {
    f"time/{p}_s": 1.0 for p in ("rollout", "score", "learn", "publish")
}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"journal.root: .*cannot be written \(Not a directory\)"):
        Journal(tmp_path / "file" / "run", configuration.load("shapes"))


def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration.load("shapes")
    with Path("/dev/full").open("a") as full, Journal(tmp_path, config) as first:  # every write there fails
        first.begin_after(0)
        first.write(LINE)
        first._metrics.close()
        first._metrics = full
        with pytest.raises(RunError, match="No space left on device: free the disk, then --resume"):
            first.write({**LINE, "step": 2})
    with Journal(tmp_path, config, resume=True) as second:
        second.begin_after(1)
        second.write({**LINE, "step": 2})
        usage = namedtuple("usage", "total used free")(1 << 30, 1 << 30, journal.LEAST_FREE_BYTES - 1)
        monkeypatch.setattr(journal.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(RunError, match="No space left"):
            second.write({**LINE, "step": 3})
    assert [line[:10] for line in (tmp_path / METRICS).read_text().splitlines()] == ['{"step": 1', '{"step": 2']
