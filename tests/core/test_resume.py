"""A resumed run is the run that was begun: what may change, and what is refused with its difference."""

from pathlib import Path

import pytest

from t2ir1_ray import config
from t2ir1_ray.errors import UserError
from t2ir1_ray.journal.resume import check_unchanged, record_inputs


def prepared(folder: Path) -> config.Config:
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "a ring", "task_type": "object"}\n')
    loaded = config.load("shapes", [f"data.prompts={prompts}"])
    record_inputs(folder, loaded)
    return loaded


@pytest.mark.parametrize(
    "override",
    [
        "learner.ranks=2",
        "rollout.actors=3",
        "cluster.call_timeout_s=9",
        "experts.hps.replicas=2",
        "experts.hps.runtime_env={pip: [a]}",
    ],
)
def test_where_things_run_may_change(override: str, tmp_path: Path) -> None:
    stored = prepared(tmp_path)
    changed = config.load("shapes", [f"data.prompts={stored.data.prompts}", override])
    assert changed != stored
    check_unchanged(tmp_path, stored, changed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.beta=0.5", "learner.beta: 0.01 is now 0.5"),
        ("experts.hps.weight=2", "experts.hps.weight: 1.0 is now 2.0"),
        ("train.seed=4", "train.seed: 0 is now 4"),
    ],
)
def test_what_changes_the_figures_is_refused(override: str, message: str, tmp_path: Path) -> None:
    stored = prepared(tmp_path)
    changed = config.load("shapes", [f"data.prompts={stored.data.prompts}", override])
    with pytest.raises(UserError, match=message):
        check_unchanged(tmp_path, stored, changed)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    stored = prepared(tmp_path)
    Path(stored.data.prompts).write_text('{"prompt": "a circle", "task_type": "object"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl: other contents"):
        check_unchanged(tmp_path, stored, stored)
