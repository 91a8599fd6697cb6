"""Runs that are interrupted, against the uninterrupted one."""

import json
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from t2ir1_ray import config
from t2ir1_ray.errors import UserError
from t2ir1_ray.train import main
from t2ir1_ray.trainer import train
from tests.system.runs import assert_same_metrics, interrupt, metrics, small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
STEPS = 6


def test_a_run_that_is_terminated_and_then_killed_goes_on_exactly(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "torn"
    small_config(tmp_path / "small.yaml")
    place = [
        "--config",
        str(tmp_path / "small.yaml"),
        "cluster.dashboard=false",
        f"journal.root={tmp_path}",
        "journal.name=torn",
        f"train.steps={STEPS}",
    ]
    code, errors, seconds = interrupt(run, 3, psutil.Process.terminate, *place)
    assert code == 1
    assert errors.strip().count("\n") == 0, errors
    assert "asked to end after step" in errors
    assert f"--resume {run}" in errors
    assert seconds < 30
    saved = json.loads((max((run / "checkpoints").glob("step_*")) / "state.json").read_text())
    assert saved["step"] == len(metrics(run)) - 1

    code, _, _ = interrupt(run, saved["step"] + 1, psutil.Process.kill, "--resume", str(run))
    assert code == -signal.SIGKILL
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # killed in the middle of a line
    (run / "checkpoints" / ".step_000009.partial").mkdir()
    train(config.load(str(run / "config.yaml")), run, resume=True)
    assert_same_metrics(metrics(whole), metrics(run), tolerance=0)
    assert not list((run / "checkpoints").glob(".*"))
    assert sorted(p.name for p in (run / "rollouts").iterdir()) == sorted(
        p.name for p in (whole / "rollouts").iterdir()
    )


def test_a_damaged_checkpoint_is_passed_over_and_other_ranks_take_over(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks go on from step 2 of one rank's run, because step 4 has a flipped byte and the later ones are gone."""
    run = tmp_path / "two"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step_000006")
    weights = run / "checkpoints" / "step_000004" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    train(config.load(str(run / "config.yaml"), ["learner.ranks=2"]), run, resume=True)
    assert "step_000004 is not whole (model.safetensors has other contents" in " ".join(capsys.readouterr().out.split())
    assert_same_metrics(metrics(whole), metrics(run), tolerance=1e-4)


def test_a_changed_run_is_refused_unless_forced(whole: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*learner.beta: 0.01 is now 0.5[^\n]*$"):
        main(["--resume", str(whole), "learner.beta=0.5"])
