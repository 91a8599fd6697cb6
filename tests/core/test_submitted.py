"""A command in a submitted job, whose working directory is Ray's temporary copy: nothing that matters is left there."""

import re
from pathlib import Path

import pytest

from t2ir1_ray import config, evaluate, generate, train
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting.nodes import run_folder

MEND = "lies in Ray's temporary copy of the submitted folder: give an absolute path, on a disk that all nodes share"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a job, as Ray makes it on a node."""
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0a1b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("root", ["runs", "./runs", "a/../runs", "{copy}/runs"])
def test_a_run_is_not_left_in_the_copy(root: str, copy: Path) -> None:
    root = root.format(copy=copy)
    with pytest.raises(UserError) as refused:
        train.main([f"journal.root={root}"])
    assert str(refused.value) == f"journal.root={root}: {MEND}"
    (check,) = run_folder(config.load("shapes", [f"journal.root={root}"]))
    assert (check.level, check.text) == ("FAIL", str(refused.value))
    assert not (copy / "runs").exists()


def test_a_run_is_not_looked_for_in_the_copy(copy: Path) -> None:
    with pytest.raises(UserError) as refused:
        train.main(["--resume", "runs/mine"])
    assert str(refused.value) == f"--resume: runs/mine {MEND}"


@pytest.mark.parametrize("out", [[], ["--out", "mine"]])
def test_images_and_evaluations_are_not_left_in_the_copy(out: list[str], copy: Path) -> None:
    for main, words in ((generate.main, ["a red circle"]), (evaluate.main, ["--benchmark", "shapes", "--limit", "1"])):
        with pytest.raises(UserError, match=r"^--out: [\w/.-]+ " + re.escape(MEND)):
            main([*words, *out])
    assert not list(copy.iterdir())


def test_an_absolute_folder_is_taken(copy: Path, tmp_path: Path) -> None:
    root = f"journal.root={tmp_path / 'shared'}"
    assert not list(run_folder(config.load("shapes", [root])))
    _, run = train.configured("shapes", [root, "journal.name=mine"], None, force=False)
    assert run == tmp_path / "shared" / "mine"
    with pytest.raises(UserError, match="data.prompts: missing.jsonl"):  # the next thing that is looked at
        train.main([root, "data.prompts=missing.jsonl"])


def test_outside_a_job_a_relative_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not list(run_folder(config.load("shapes")))


def test_checkpoints_and_prompts_of_the_copy_have_the_same_name_on_every_node(copy: Path) -> None:
    """Ray makes the copy in the same place on every node; what a run writes down leads into the next job's copy."""
    (copy / "own.jsonl").write_text('{"prompt": "a ring", "task_type": "object"}\n')
    (copy / "models" / "own").mkdir(parents=True)
    given = config.load("shapes", ["policy.path=models/own", "experts.hps.path=models/own", "data.prompts=own.jsonl"])
    assert given.policy.path == given.experts["hps"].path == str(copy / "models" / "own")
    config.save(given, copy / "config.yaml")
    assert "_ray_pkg" not in (copy / "config.yaml").read_text()
    assert config.load(str(copy / "config.yaml")) == given
