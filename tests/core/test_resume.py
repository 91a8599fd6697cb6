"""A resumed run is the run that was begun: what may change, and what is refused with its difference."""

import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest

from t2ir1_ray import config
from t2ir1_ray.config import resuming
from t2ir1_ray.config.resuming import ON_RESUME, Change, change_of
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
    check_unchanged(tmp_path, stored, changed, force=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.beta=0.5", "learner.beta: 0.01 is now 0.5"),
        ("experts.hps.weight=2", "experts.hps.weight: 1.0 is now 2.0"),
        ("train.seed=4", "train.seed: 0 is now 4"),
        ("experts.hps.options.new=[]", "experts.hps.options.new: nothing is now"),
    ],
)
def test_what_changes_the_figures_is_refused(override: str, message: str, tmp_path: Path) -> None:
    stored = prepared(tmp_path)
    changed = config.load("shapes", [f"data.prompts={stored.data.prompts}", override])
    with pytest.raises(UserError, match=message):
        check_unchanged(tmp_path, stored, changed, force=False)
    check_unchanged(tmp_path, stored, changed, force=True)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    stored = prepared(tmp_path)
    Path(stored.data.prompts).write_text('{"prompt": "a circle", "task_type": "object"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl: other contents"):
        check_unchanged(tmp_path, stored, stored, force=False)
    check_unchanged(tmp_path, stored, stored, force=True)


@pytest.mark.parametrize(
    "override",
    ["policy.path=other", "learner.lora_rank=4", "learner.zero_stage=2", "learner.dtype=bfloat16", "journal.name=b"],
)
def test_what_a_checkpoint_is_made_of_is_refused_also_with_force(override: str, tmp_path: Path) -> None:
    stored = prepared(tmp_path)
    changed = config.load("shapes", [f"data.prompts={stored.data.prompts}", override])
    with pytest.raises(UserError, match=f"{override.split('=')[0]}: .* begin a new run"):
        check_unchanged(tmp_path, stored, changed, force=True)


def test_every_key_of_the_configuration_is_in_the_table_once() -> None:
    keys = []
    for section, kind in get_type_hints(config.Config).items():
        fields = dataclasses.fields(config.ExpertConfig if section == "experts" else kind)
        keys += [(section, field.name) for field in fields]
    assert sorted(ON_RESUME) == sorted(keys)
    written = [key for changes in resuming._TABLE.values() for names in changes.values() for key in names.split()]
    assert len(written) == len(keys)


def test_keys_inside_of_values_are_those_of_their_field() -> None:
    assert change_of("learner.betas.1") is Change.FORCED
    assert change_of("learner.lora_targets.0") is Change.FIXED
    assert change_of("experts.actors.runtime_env.env_vars.num_gpus") is Change.FREE
    assert change_of("experts.replicas.weight") is Change.FORCED
