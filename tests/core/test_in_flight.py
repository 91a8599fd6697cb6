"""What a checkpoint keeps of the steps that are ahead of the learner."""

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from actors.cluster import ScoredGroup
from rewards.base import ExpertScores
from t2ir1_ray import config
from t2ir1_ray.loop.collector import Collected, Collector
from t2ir1_ray.loop.in_flight import read_steps, write_step
from t2ir1_ray.loop.timeline import Timeline
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.records.schema import ReferenceLogprobs, Rollouts
from tests.core.test_schema import assert_equal

SAMPLES = 3
PROMPT = {
    "prompt_id": "7",
    "prompt": "two réd circles",
    "task_type": "numeracy",
    "nouns": ["circle"],
    "attr_nouns": None,
    "spatial_info": {"obj1": "a", "obj2": "b", "locality": "on the left of"},
    "numeracy_info": [{"obj_name": "circle", "num": 2}],
}


def group(seed: int, version: int = 4, reference: bool = True) -> ScoredGroup:
    rng = np.random.default_rng(seed)

    def ragged(dtype: type) -> list[np.ndarray]:
        return [rng.integers(0, 99, n).astype(dtype) for n in rng.integers(0, 5, SAMPLES)]

    rollouts = Rollouts(
        prompt_id=["7"] * SAMPLES,
        sample=np.arange(SAMPLES, dtype=np.int32),
        policy_version=np.full(SAMPLES, version, np.int32),
        seed=rng.integers(0, 2**62, SAMPLES),
        semantic_prompt_ids=ragged(np.int32),
        semantic_ids=ragged(np.int32),
        semantic_logprobs=ragged(np.float32),
        plan_truncated=np.array([False, True, False]),
        plan=["", "a plan", "\n"],
        image_prompt_ids=ragged(np.int32),
        image_ids=rng.integers(0, 9, (SAMPLES, 4)).astype(np.int32),
        image_logprobs=rng.normal(size=(SAMPLES, 4)).astype(np.float32),
        pixels=rng.integers(0, 256, (SAMPLES, 2, 5, 3)).astype(np.uint8),
    )
    scores = {
        "hps": ExpertScores(rng.normal(size=SAMPLES).astype(np.float32), ["ok"] * SAMPLES, [None] * SAMPLES),
        "git": ExpertScores(np.array([0.5, np.nan, np.nan], np.float32), ["ok", "na", "failed"], [None, None, "why"]),
    }
    image = rng.normal(size=(SAMPLES, 4)).astype(np.float32)
    logprobs = ReferenceLogprobs(ragged(np.float32), image) if reference else None
    return ScoredGroup(PROMPT, rollouts, scores, logprobs)


@pytest.mark.parametrize("reference", [True, False])
def test_groups_come_back_bit_for_bit(tmp_path: Path, reference: bool) -> None:
    written = [group(seed, reference=reference) for seed in range(2)]
    probed = {"expert/hps/follows": 0.1 + 0.2}
    write_step(tmp_path, 12, written, replaced=3, probed=probed, made_by="a run")
    write_step(tmp_path, 13, written[:1], replaced=0, probed={}, made_by="a run")
    assert read_steps(tmp_path, "another run") == {}
    steps = read_steps(tmp_path, "a run")
    assert list(steps) == [12, 13]
    assert [rest for _, *rest in steps.values()] == [[3, probed], [0, {}]]
    for before, after in zip(written, steps[12][0], strict=True):
        assert after.prompt == before.prompt
        assert_equal(before.rollouts, after.rollouts)
        for name, scores in before.scores.items():
            np.testing.assert_array_equal(after.scores[name].scores, scores.scores)
            assert (after.scores[name].status, after.scores[name].errors) == (scores.status, scores.errors)
        if reference:
            assert_equal(before.reference, after.reference)
        else:
            assert after.reference is None


def test_a_checkpoint_without_steps_ahead_has_none(tmp_path: Path) -> None:
    assert read_steps(tmp_path, "a run") == {}


def collector(*overrides: str, ahead: bool = True) -> Collector:
    """Without a cluster: nothing is sampled. ahead: it holds two steps, sampled by version 5, behind step 6."""
    run = config.load("shapes", ["train.mode=async", *overrides])
    made = Collector(run, None, read_prompts(run.data.prompts), Timeline())
    for step, groups in {7: [group(0, version=5), group(1, version=5)], 8: [group(2, version=5)]}.items():
        if ahead:
            made._steps[step] = Future()
            made._steps[step].set_result(Collected(groups, 0))
    return made


@pytest.mark.parametrize(("max_staleness", "kept", "stale"), [(2, [7, 8], 0), (1, [7], SAMPLES), (0, [], 3 * SAMPLES)])
def test_what_is_too_old_is_counted_and_not_trained_on(
    tmp_path: Path, max_staleness: int, kept: list[int], stale: int
) -> None:
    """Two steps, sampled by version 5, come into a run that was forced to another bound."""
    saved = collector("train.max_staleness=2")
    saved.save_in_flight(tmp_path, 6)
    restored = collector(f"train.max_staleness={max_staleness}", ahead=False)
    restored.restore_in_flight(tmp_path)
    assert sorted(restored._steps) == kept
    assert restored.stale == stale


@pytest.mark.parametrize(
    "override",
    ["rollout.temperature=0.5", "experts.hps.options.x=1", "policy.plan_template=plan {prompt}", "learner.beta=0"],
)
def test_what_other_settings_sampled_is_sampled_again(tmp_path: Path, override: str) -> None:
    collector("train.max_staleness=2").save_in_flight(tmp_path, 6)
    restored = collector("train.max_staleness=2", override, ahead=False)
    restored.restore_in_flight(tmp_path)
    assert not restored._steps


@pytest.mark.parametrize("override", ["learner.learning_rate=1", "train.steps=9", "rollout.actors=3"])
def test_what_these_settings_would_sample_again_is_kept(tmp_path: Path, override: str) -> None:
    collector("train.max_staleness=2").save_in_flight(tmp_path, 6)
    restored = collector("train.max_staleness=2", override, ahead=False)
    restored.restore_in_flight(tmp_path)
    assert sorted(restored._steps) == [7, 8]
