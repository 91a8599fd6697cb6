"""Training answers bad input with one line, without starting actors; its command with exit code 2."""

import json
import re
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
from t2ir1_ray.train import main
from t2ir1_ray.trainer import train
from tests.system.runs import small_config

pytestmark = pytest.mark.slow


def assert_refused(arguments: list[str], *words: str) -> None:
    """In one line. How a command prints it and ends: `test_a_wrong_expert_checkpoint_is_refused_before_any_rollout`."""
    with pytest.raises(UserError) as refused:
        main(["cluster.dashboard=false", *arguments])
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


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
    assert_refused([f"journal.root={tmp_path}", *arguments], *words)


def test_a_malformed_prompt_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a", "task_type": "color"}) + "\n{oops\n")
    with pytest.raises(UserError, match=re.escape(f"{file}:2")):
        train(config.load("shapes", [f"data.prompts={file}"]), tmp_path / "run")


def test_a_bad_checkpoint_is_refused_before_any_rollout(tmp_path: Path) -> None:
    shipped = Path(config.load().policy.path)
    broken = tmp_path / "policy"
    broken.mkdir()
    for file in shipped.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert_refused([f"policy.path={broken}", f"journal.root={tmp_path / 'a'}"], "policy.path", "truncated")
    assert_refused([f"policy.path={tmp_path / 'none'}", f"journal.root={tmp_path / 'b'}"], "does not exist")


def test_more_than_the_cluster_has_is_refused_with_a_table(local_ray: None, tmp_path: Path) -> None:
    settings = config.load("shapes", ["rollout.num_gpus=1", "rollout.actors=3"])
    with pytest.raises(UserError) as refused:
        train(settings, tmp_path / "run")
    for words in ("too few", "GPUs", "rollout", "asked in total", "cluster has"):
        assert words in str(refused.value)


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
    settings.cluster.place_timeout_s = 30
    placement.reserve(settings).release()


def test_a_run_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds a run already"):
        train(config.load(), tmp_path)


def test_a_wrong_expert_checkpoint_is_refused_before_any_rollout(local_ray: None, tmp_path: Path) -> None:
    """The detector's folder in GIT's slot: only its actor finds out. The command ends with one line and exit code 2."""
    file = tmp_path / "small.yaml"
    small_config(file, experts=("git",))
    wrong = config.load().experts["grounding_dino"].path
    arguments = ["--config", str(file), "learner.beta=0", f"experts.git.path={wrong}"]
    arguments += [f"cluster.address={ray.get_runtime_context().gcs_address}"]
    command = [sys.executable, "-m", "t2ir1_ray.train", *arguments, f"journal.root={tmp_path}", "journal.name=run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    for word in ("expert git", wrong):
        assert word in result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
