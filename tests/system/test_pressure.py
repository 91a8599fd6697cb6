"""Too much, too long, too much the same: a run under strain does what it does without, or says what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import ray

from tests.system.runs import assert_same_metrics, metrics, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def test_an_overfull_object_store_changes_nothing(whole: Path, tmp_path: Path) -> None:
    """Somebody else's objects fill it one and a half times: Ray moves them to the disk, the run goes on."""
    size = int(ray.cluster_resources()["object_store_memory"])
    ballast = [ray.put(np.full(size // 20, i, np.uint8)) for i in range(30)]
    found = run(tmp_path / "full", "train.steps=3")
    assert_same_metrics(metrics(whole)[:4], found, tolerance=0)
    assert [int(ray.get(each)[0]) for each in ballast] == list(range(30))


def test_plans_that_do_not_end_are_cut_off_counted_and_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = run(tmp_path / "cut", "train.steps=1", "eval.every=0", "policy.max_plan_tokens=2")
    assert (line["plan/truncated"], line["plan/length"]) == (1.0, 2.0)
    assert line["grad_norm"] > 0
    assert "100% of the plans were cut off: raise policy.max_plan_tokens" in capsys.readouterr().out


def test_groups_of_identical_images_do_no_harm(tmp_path: Path) -> None:
    """A nearly greedy policy draws the same image again and again: a standard deviation of 0 to divide by."""
    (line,) = run(tmp_path / "same", "train.steps=1", "eval.every=0", "rollout.temperature=0.001")
    assert line["reward/zero_std_groups"] >= 0.5
    assert np.isfinite([line["loss"], line["grad_norm"]]).all()
