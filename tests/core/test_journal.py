"""Figures that are none and a disk that fails: one line, and what was reported stays."""

import json
import math
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
@pytest.mark.parametrize("name", ["mismatch/semantic_kl", "entropy/image", "reward/mean", "kl", "time/learn_s"])
def test_a_figure_that_is_not_finite_ends_the_run_by_its_name(tmp_path: Path, name: str, value: Any) -> None:
    with Journal(tmp_path, configuration.load("shapes")) as opened:
        opened.begin_after(0)
        opened.write(LINE)
        with pytest.raises(RunError, match=f"^step 2: not finite: {name}={value}$"):
            opened.write({**LINE, "step": 2, name: value})
    assert len((tmp_path / METRICS).read_text().splitlines()) == 1


def test_many_figures_that_are_not_finite_make_a_short_line(tmp_path: Path) -> None:
    with Journal(tmp_path, configuration.load("shapes")) as opened:
        opened.begin_after(0)
        with pytest.raises(RunError, match=r"not finite: a0=nan, a1=nan, a2=nan, a3=nan and 16 more"):
            opened.write({**LINE, **{f"a{i}": math.nan for i in range(20)}})


def test_a_figure_that_a_step_does_not_have_is_null(tmp_path: Path) -> None:
    """The collecting of a step that came with a checkpoint took no time of this run."""
    with Journal(tmp_path, configuration.load("shapes")) as opened:
        opened.begin_after(0)
        opened.write({**LINE, "time/rollout_s": None, "rollout/images_per_s": None})
    (line,) = (tmp_path / METRICS).read_text().splitlines()
    assert json.loads(line)["time/rollout_s"] is None
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "time/score_s" in board.Tags()["scalars"]
    assert "time/rollout_s" not in board.Tags()["scalars"]
