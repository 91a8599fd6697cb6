"""Too much, too long, too much the same: a run under strain does what it does without, or says what is wrong."""

from pathlib import Path

import numpy as np
import pytest

from tests.system.runs import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def test_plans_that_do_not_end_and_groups_without_a_signal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plans are cut off, counted and trained on. A cold policy draws the same image again and again, so that most
    groups have equal rewards: they are replaced by other prompts, and those that are left do no harm."""
    cold = ["rollout.temperature=0.1", "rollout.group_size=2", "data.prompts_per_step=6", "learner.beta=0"]
    resample = ["learner.zero_variance=resample", "learner.max_resamples=1"]
    (line,) = run(tmp_path / "run", "train.steps=1", "eval.every=0", "policy.max_plan_tokens=2", *cold, *resample)
    assert (line["plan/truncated"], line["plan/length"]) == (1.0, 2.0)
    assert line["grad_norm"] > 0
    assert "100% of the plans were cut off: raise policy.max_plan_tokens" in capsys.readouterr().out
    assert line["groups/replaced"] > 0
    assert 0.5 <= line["reward/zero_std_groups"] < 1  # a standard deviation of 0 to divide by
    assert np.isfinite([line["loss"], line["grad_norm"]]).all()
    assert line["samples/dropped"] == 2 * line["groups/dropped"]
