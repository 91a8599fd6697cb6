"""A resumed run is the run that was begun: what may change, and what is refused with its difference."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from t2ir1_ray import config
from t2ir1_ray.config import resuming
from t2ir1_ray.config.portable import portable
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


def test_prompts_that_are_no_file_are_refused(tmp_path: Path) -> None:
    stored = prepared(tmp_path)
    device = dataclasses.replace(stored, data=dataclasses.replace(stored.data, prompts="/dev/zero"))
    with pytest.raises(UserError, match="data.prompts: /dev/zero is no file"):
        check_unchanged(tmp_path, stored, device, force=False)


ONE_JOB = """
import sys
from pathlib import Path
from t2ir1_ray import config
from t2ir1_ray.config.resuming import fingerprint
from t2ir1_ray.journal.resume import check_unchanged, record_inputs
run = Path(sys.argv[1])
if run.exists():
    stored = config.load(str(run / config.FILE))
    check_unchanged(run, stored, config.load("shapes", ["policy.path=models/own", "data.prompts=own.jsonl"]))
else:
    stored = config.load("shapes", ["policy.path=models/own", "data.prompts=own.jsonl"])
    config.save(stored, run / config.FILE)
    record_inputs(run, stored)
print(fingerprint(stored), stored.policy.path, stored.eval.prompts, stored.experts["hps"].path)
"""


def test_a_job_goes_on_with_the_run_of_another_one(tmp_path: Path) -> None:
    """Each has Ray's own copy of the submitted folder, with the package and its shipped files in it."""
    said = []
    for job in ("_ray_pkg_a", "_ray_pkg_b"):
        copy = tmp_path / f"session_{job}" / "runtime_resources" / "working_dir_files" / job
        (copy / "models" / "own").mkdir(parents=True)
        (copy / "own.jsonl").write_text('{"prompt": "a ring", "task_type": "object"}\n')
        (copy / "t2ir1_ray").symlink_to(Path(config.__file__).parents[1])
        command = [sys.executable, "-c", ONE_JOB, str(tmp_path / "run")]
        env = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        settings, *paths = done.stdout.split()
        assert all(path.startswith(str(copy)) for path in paths)  # absolute, for actors work elsewhere
        said.append(settings)
    assert said[0] == said[1]
    written = (tmp_path / "run" / config.FILE).read_text()
    assert "path: models/own" in written
    assert "path: ${shipped:hps}" in written
    assert "_ray_pkg" not in written


def test_what_is_no_path_of_a_job_is_written_as_it_is() -> None:
    for value in ("/models/janus", "runs", "org/model", "", str(config.SHIPPED), 3, None, ["/a", {"b": "/c"}]):
        assert portable(value) == value
    assert portable({"a": [str(config.SHIPPED / "hps")]}) == {"a": ["${shipped:hps}"]}


@pytest.mark.parametrize(
    "override",
    ["policy.path=other", "learner.lora_rank=4", "learner.zero_stage=2", "learner.dtype=bfloat16", "journal.name=b"],
)
def test_what_a_checkpoint_is_made_of_is_refused_also_with_force(override: str, tmp_path: Path) -> None:
    stored = prepared(tmp_path)
    changed = config.load("shapes", [f"data.prompts={stored.data.prompts}", override])
    with pytest.raises(UserError, match=f"{override.split('=')[0]}: .* begin a new run"):
        check_unchanged(tmp_path, stored, changed, force=True)


def test_the_policy_may_lie_elsewhere_but_not_change(tmp_path: Path) -> None:
    """A folder that moved is known by its contents; without any, as in runs of before, its path must stay."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(config.SHIPPED / "policy", old)
    prompts = prepared(tmp_path).data.prompts
    stored, moved = (config.load("shapes", [f"data.prompts={prompts}", f"policy.path={path}"]) for path in (old, new))
    record_inputs(tmp_path, stored)
    old.rename(new)
    check_unchanged(tmp_path, stored, moved)
    assert resuming.fingerprint(stored) == resuming.fingerprint(moved)

    settings = new / "config.json"
    text = settings.read_text()
    settings.write_text(text + " ")
    with pytest.raises(UserError, match=r"policy.path: .* begin a new run"):
        check_unchanged(tmp_path, stored, moved, force=True)
    with pytest.raises(UserError, match=r"policy.path: .*new: other contents than before"):
        check_unchanged(tmp_path, moved, moved)
    check_unchanged(tmp_path, moved, moved, force=True)

    Path(prompts).unlink()
    check_unchanged(tmp_path, moved, moved, force=True)  # who forces it meets the missing file later, by its name
    Path(prompts).write_text('{"prompt": "a ring", "task_type": "object"}\n')

    settings.write_text(text)
    inputs = tmp_path / "inputs.json"
    inputs.write_text(json.dumps({k: v for k, v in json.loads(inputs.read_text()).items() if k != "policy.path"}))
    check_unchanged(tmp_path, moved, moved)
    with pytest.raises(UserError, match=r"policy.path: .* begin a new run"):
        check_unchanged(tmp_path, stored, moved)


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
