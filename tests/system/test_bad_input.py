"""Every command answers bad input with one line and exit code 2, without a traceback and without starting actors."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors import placement
from t2ir1_ray import config
from t2ir1_ray.errors import UserError

pytestmark = pytest.mark.slow


def command(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "t2ir1_ray.train", "cluster.dashboard=false", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.step=3"], ["train.step", "train.steps"]),
        (["train.steps=many"], ["train.steps", "Integer"]),
        (["--config", "nowhere"], ["nowhere", "shapes"]),
        (["rollout.group_size=1"], ["group_size", "at least 2"]),
        (["learner.ranks=3"], ["prompts_per_step", "divisible"]),
        (["data.prompts=missing.jsonl"], ["missing.jsonl", "does not exist"]),
    ],
)
def test_bad_configuration(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    result = command(f"journal.root={tmp_path}", *arguments)
    assert_refused(result, *words)
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_malformed_prompt_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a", "task_type": "color"}) + "\n{oops\n")
    assert_refused(command(f"data.prompts={file}", f"journal.root={tmp_path}"), f"{file}:2")


def test_a_bad_checkpoint_is_refused_before_any_rollout(tmp_path: Path) -> None:
    shipped = Path(config.load().policy.path)
    broken = tmp_path / "policy"
    broken.mkdir()
    for file in shipped.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert_refused(command(f"policy.path={broken}", f"journal.root={tmp_path / 'a'}"), "policy.path", "truncated")
    assert_refused(command(f"policy.path={tmp_path / 'none'}", f"journal.root={tmp_path / 'b'}"), "does not exist")


def test_more_than_the_cluster_has_is_refused_with_a_table(tmp_path: Path) -> None:
    result = command("rollout.num_gpus=1", "rollout.actors=3", f"journal.root={tmp_path}", timeout=120)
    assert_refused(result, "too few", "GPUs", "rollout", "asked in total", "cluster has")


def test_more_than_is_free_is_refused_in_time(local_ray: None) -> None:
    """Somebody else holds the CPUs. The table says so, and nothing of the request stays in the cluster."""
    settings = config.load("shapes", ["cluster.place_timeout_s=1"])
    cpus = int(ray.cluster_resources()["CPU"])
    others = placement_group([{"CPU": 1}] * cpus)
    assert others.wait(30)
    begin = time.monotonic()
    with pytest.raises(UserError, match="not placed within 1 s(?s:.*)of it free +0 "):
        placement.reserve(settings)
    assert time.monotonic() - begin < 10
    remove_placement_group(others)
    placement.reserve(settings).release()


def test_a_run_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("{}\n")
    assert_refused(command(f"journal.root={tmp_path}", "journal.name=mine"), "holds a run already")


def test_a_wrong_expert_checkpoint_is_refused_before_any_rollout(tmp_path: Path) -> None:
    """The detector's folder in GIT's slot."""
    wrong = config.load().experts["grounding_dino"].path
    result = command(f"experts.git.path={wrong}", f"journal.root={tmp_path}", "journal.name=run")
    assert_refused(result, "expert git", wrong)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
