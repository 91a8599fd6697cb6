"""The whole system on the shipped shapes world: real Ray, vLLM, DeepSpeed, experts, Arrow, TensorBoard."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, JanusForConditionalGeneration

from t2ir1_ray import config
from tests.system.newcomer import STEPS
from tests.system.runs import STEPS as WHOLE_STEPS
from tests.system.runs import assert_same_metrics, metrics, run

pytestmark = pytest.mark.slow
KEYS = {
    *("step", "policy_version", "loss", "kl", "reward/mean", "reward/hps", "reward/git", "reward/zero_std_groups"),
    *("time/step_s", "time/rollout_s", "time/score_s", "time/learn_s", "time/publish_s", "rollout/images_per_s"),
    *("mismatch/semantic_kl", "staleness"),
}


@pytest.fixture(scope="module")
def first(newcomer: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The run of the README's first command: all four experts."""
    folder = newcomer / "runs" / "seed0"
    return folder, metrics(folder)


def test_the_run_folder_holds_what_a_person_looks_for(first: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, metrics = first
    assert [line["step"] for line in metrics] == list(range(STEPS + 1))
    assert metrics[0]["heldout/accuracy"] > 0
    assert "heldout/accuracy" in metrics[-1]
    for line in metrics[1:]:
        assert line.keys() >= KEYS
        bins = line.pop("mismatch/semantic_histogram"), line.pop("mismatch/image_histogram")
        assert sum(map(sum, bins)) == line["tokens"]
        assert all(math.isfinite(value) for value in line.values())
        assert line["policy_version"] == line["step"]
        assert line["staleness"] == 0

    assert config.load(str(folder / "config.yaml")).train.steps == STEPS
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("reward/mean")] == [1, 2, 3]
    assert {"advantage", "staleness", "log_ratio/semantic", "log_ratio/image"} <= set(board.Tags()["histograms"])
    assert board.Histograms("log_ratio/image")[-1].histogram_value.num == sum(bins[1])
    assert board.Images("samples")
    dump = pq.read_table(folder / "rollouts" / "step_000002.parquet")
    assert len(dump) == 4 * 8
    assert dump["image"][0].as_py().startswith(b"\x89PNG")
    assert dump["reward"].to_numpy().mean() == pytest.approx(metrics[2]["reward/mean"], rel=1e-5)


def test_sampling_and_learning_see_the_same_policy(first: tuple[Path, list[dict[str, Any]]]) -> None:
    """vLLM's and the decoder's log-probs equal the learner's, after every update: the step's ratio is 1."""
    for line in first[1][1:]:
        for segment in ("semantic", "image"):
            assert line[f"mismatch/{segment}_max"] < 1e-4, line["step"]
            assert line[f"mismatch/{segment}_kl"] < 1e-6
        assert line["publish/changed"] == 1
    assert first[1][1]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert first[1][3]["kl"] > 1e-6


def test_a_healthy_run_says_nothing_and_its_experts_follow_the_images(first: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, metrics = first
    follows = {key: value for key, value in metrics[1].items() if key.endswith("/follows")}
    assert follows == pytest.approx({f"expert/{name}/follows": 1.0 for name in ("hps", "git", "grounding_dino", "orm")})
    assert not [key for line in metrics[2:] for key in line if key.endswith("/follows")]
    assert '"warning"' not in (folder / "activity.jsonl").read_text()


def test_the_last_checkpoint_is_the_trained_policy_in_plain_transformers(
    first: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder = first[0] / "checkpoints" / f"step_{STEPS:06d}"
    trained = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    base = JanusForConditionalGeneration.from_pretrained(config.load().policy.path, dtype=torch.float32).state_dict()
    assert trained.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert "lm_head.weight" in changed
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in changed)
    assert AutoTokenizer.from_pretrained(folder)("a red circle")["input_ids"]


def test_what_must_not_matter_changes_nothing(whole: Path, tmp_path: Path) -> None:
    """The same seed gives the same metrics, async without staleness as sync, with a second rollout actor, and while
    somebody else's objects fill the object store one and a half times: Ray moves them to the disk."""
    size = int(ray.cluster_resources()["object_store_memory"])
    ballast = [ray.put(np.full(size // 20, i, np.uint8)) for i in range(30)]
    without_effect = ["train.mode=async", "train.max_staleness=0", "rollout.actors=2"]
    again = run(tmp_path / "again", f"train.steps={WHOLE_STEPS}", *without_effect)
    assert_same_metrics(metrics(whole), again, tolerance=0)
    assert [int(ray.get(each)[0]) for each in ballast] == list(range(30))
