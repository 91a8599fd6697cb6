"""Rollouts that go ahead of the learner: what they are, that they overlap, and that such a run goes on exactly."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from t2ir1_ray import config
from t2ir1_ray.journal.warning_signs import WarningSigns
from t2ir1_ray.loop.in_flight import read_steps
from t2ir1_ray.trainer import train
from tests.system.runs import STEPS as WHOLE_STEPS
from tests.system.runs import assert_same_metrics, metrics, small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
STEPS, AHEAD = 6, 2


@pytest.fixture(scope="module")
def ahead(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rollouts go two updates ahead."""
    run = tmp_path_factory.mktemp("async") / "ahead"
    overrides = [f"train.steps={STEPS}", "train.mode=async", f"train.max_staleness={AHEAD}", "journal.profile=true"]
    train(small_config(run.with_suffix(".yaml"), *overrides), run)
    return run


def test_samples_are_as_old_as_they_may_be_and_no_older(ahead: Path, whole: Path) -> None:
    found = metrics(ahead)
    assert [line["staleness"] for line in found[1:]] == [0, 1, *[AHEAD] * (STEPS - 2)]
    assert {line["samples/stale"] for line in found[1:]} == {0}
    assert found[1]["reward/mean"] == metrics(whole)[1]["reward/mean"]  # the first step is the same in both modes
    drift = [line["mismatch/image_kl"] for line in found[1:]]
    assert drift[0] < 1e-6 < min(drift[1:])


def test_samples_that_are_older_than_they_say_are_told(ahead: Path, whole: Path) -> None:
    """The first step in which samples are a version older, as if they were said to be new; and the same step of a run
    in which they are."""
    first, second = metrics(ahead)[1:3]
    signs = WarningSigns(config.load(str(ahead / "config.yaml")))
    assert (first["staleness"], second["staleness"]) == (0, 1)
    assert signs.look(first) == []
    assert ["than they say" in sentence for sentence in signs.look(second | {"staleness": 0})] == [True, True]
    signs = WarningSigns(config.load(str(whole / "config.yaml")))
    assert [signs.look(line) for line in metrics(whole)[1:]] == [[]] * WHOLE_STEPS


def test_rollouts_overlap_with_learning(ahead: Path) -> None:
    events = json.loads((ahead / "trace.json").read_text())["traceEvents"]
    spans = {(e["name"], e["args"]["step"]): (e["ts"], e["ts"] + e["dur"]) for e in events}
    for step in range(1, STEPS):
        learn, following = spans["learn", step], spans["rollout", step + 1]
        assert following[0] < learn[1], step  # the next step is sampled while this one is learned


def test_a_resumed_run_takes_up_what_was_in_flight(ahead: Path, tmp_path: Path) -> None:
    """From step 2 on, steps 3 and 4 come with the checkpoint, sampled by versions 0 and 1."""
    run = tmp_path / "resumed"
    shutil.copytree(ahead, run)
    for step in (4, 6):
        shutil.rmtree(run / "checkpoints" / f"step_{step:06d}")
    flying = read_steps(run / "checkpoints" / "step_000002")
    assert [_version(groups) for groups, *_ in flying.values()] == [0, 1]
    train(config.load(str(run / "config.yaml")), run, resume=True)
    assert_same_metrics(metrics(ahead), metrics(run), tolerance=0)
    restored = [line["step"] for line in metrics(run)[1:] if line["time/rollout_s"] is None]
    assert restored == list(flying) == [3, 4]


def _version(groups: list[Any]) -> int:
    (version,) = {int(v) for group in groups for v in group.rollouts.policy_version}
    return version
