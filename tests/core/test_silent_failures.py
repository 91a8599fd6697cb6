"""Samples that teach nothing, from their scores and plans to the sentence, each within the step that it happens in; and
what becomes of the sentence."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.cluster import ScoredGroup
from learner.meter import RATIO_EDGES, SEGMENTS
from rewards.base import ExpertScores
from t2ir1_ray import config
from t2ir1_ray.config import Config
from t2ir1_ray.errors import RunError
from t2ir1_ray.journal.journal import Journal
from t2ir1_ray.journal.warning_signs import WarningSigns
from t2ir1_ray.loop.experience import assemble, plan_variety
from t2ir1_ray.records.schema import Rollouts

GROUPS, SAMPLES = 4, 8


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    """Two experts, no reference."""
    shipped = config.load("shapes", ["learner.beta=0"])
    shipped.experts = {name: shipped.experts[name] for name in ("hps", "git")}
    config.save(shipped, tmp_path / "two.yaml")
    return config.load(str(tmp_path / "two.yaml"))


def group(number: int, scores: Mapping[str, Sequence[float]], plans: Sequence[str]) -> ScoredGroup:
    """scores: expert -> (SAMPLES,); plans: (SAMPLES,)."""
    ids, logprobs = [np.zeros(2, np.int32)] * SAMPLES, [np.zeros(2, np.float32)] * SAMPLES
    rollouts = Rollouts(
        prompt_id=[str(number)] * SAMPLES,
        sample=np.arange(SAMPLES, dtype=np.int32),
        policy_version=np.zeros(SAMPLES, np.int32),
        seed=np.zeros(SAMPLES, np.int64),
        semantic_prompt_ids=ids,
        semantic_ids=ids,
        semantic_logprobs=logprobs,
        plan_truncated=np.zeros(SAMPLES, bool),
        plan=list(plans),
        image_prompt_ids=ids,
        image_ids=np.zeros((SAMPLES, 2), np.int32),
        image_logprobs=np.zeros((SAMPLES, 2), np.float32),
        pixels=np.zeros((SAMPLES, 2, 2, 3), np.uint8),
    )
    told = {
        name: ExpertScores(np.array(s, np.float32), ["ok"] * SAMPLES, [None] * SAMPLES) for name, s in scores.items()
    }
    return ScoredGroup({"prompt_id": str(number), "prompt": "p", "task_type": "color"}, rollouts, told, None)


def told(settings: Config, hps: np.ndarray, git: np.ndarray, plans: Sequence[Sequence[str]]) -> list[str]:
    """What one step says. hps, git: (GROUPS, SAMPLES) scores."""
    groups = [group(g, {"hps": hps[g], "git": git[g]}, plans[g]) for g in range(GROUPS)]
    return WarningSigns(settings).look({**assemble(groups, settings, 1).metrics, "step": 1})


SCORES = np.random.default_rng(0).random((2, GROUPS, SAMPLES))
PLANS = [[f"plan {s} of {g}" for s in range(SAMPLES)] for g in range(GROUPS)]


def test_a_step_with_different_samples_is_left_alone(settings: Config) -> None:
    assert told(settings, *SCORES, PLANS) == []


def test_rewards_that_are_constant_are_told(settings: Config) -> None:
    """All rewards are 0, as in a run that trained for weeks. Experts that rank nothing are named too."""
    sentences = told(settings, *np.zeros_like(SCORES), PLANS)
    assert "every group has equal rewards" in sentences[0]
    assert [s.split(" gave ")[0] for s in sentences[1:]] == ["expert hps", "expert git"]


def test_an_expert_that_looks_at_the_prompt_only_is_told(settings: Config) -> None:
    of_prompts = np.repeat(np.arange(GROUPS, dtype=float)[:, None], SAMPLES, axis=1)
    (sentence,) = told(settings, SCORES[0], of_prompts, PLANS)
    assert sentence.startswith("expert git gave 32 images")


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        ([[" \n"] * SAMPLES] * GROUPS, "every plan is empty"),
        ([["one"] * SAMPLES] * GROUPS, "all plans of the step are one text"),
        ([[f"plan of {g}"] * SAMPLES for g in range(GROUPS)], "no prompt has two different plans"),
    ],
)
def test_plans_that_say_nothing_are_told(settings: Config, plans: list[list[str]], words: str) -> None:
    (sentence,) = told(settings, *SCORES, plans)
    assert words in sentence


def test_variety_counts_each_plan_once() -> None:
    """Two prompts with two plans of two images each."""
    plans, groups, numbers = ["a", "a", "b", "b", "", "", "", ""], np.repeat([0, 1], 4), np.repeat(range(4), 2)
    expected = {"plan/written": 4, "plan/empty": 0.5, "plan/distinct": 3, "plan/alike_groups": 0.5}
    assert plan_variety(plans, groups, numbers) == expected
    assert plan_variety(plans[:4], groups[:4], np.zeros(4, int))["plan/alike_groups"] is None  # one plan: no variety


def test_a_step_says_what_its_experts_weigh_while_they_take_turns(settings: Config) -> None:
    groups = [group(g, {"hps": SCORES[0, g], "git": SCORES[1, g]}, PLANS[g]) for g in range(GROUPS)]
    assert not [key for key in assemble(groups, settings, 1).metrics if key.endswith("/weight")]
    settings.reward.rotate_monitor = 2  # of two experts: the rule asks for three
    for step, counts in ((2, "git"), (3, "hps")):
        taken = assemble(groups, settings, step)
        weights = {name: taken.metrics[f"expert/{name}/weight"] for name in ("hps", "git")}
        assert weights == {"hps": float(counts == "hps"), "git": float(counts == "git")}
        np.testing.assert_array_equal(taken.rewards, SCORES[int(counts == "git")].ravel().astype(np.float32))


# --- what the journal makes of a sign --------------------------------------------------------------------------------


def write(run: Path, settings: Config, steps: Sequence[int], plans: Sequence[Sequence[str]] = PLANS) -> None:
    """Journal the steps, each on the one before; the first is not 1 in a run that goes on."""
    groups = [group(g, {"hps": SCORES[0, g], "git": SCORES[1, g]}, plans[g]) for g in range(GROUPS)]
    with Journal(run, settings, resume=steps[0] > 1) as journal:
        journal.begin_after(steps[0] - 1)
        for step in steps:
            experience = assemble(groups, settings, step)
            line = {**experience.metrics, "step": step, "staleness": 0, "kl": 0.1}
            line |= {f"time/{phase}_s": 1.0 for phase in ("rollout", "score", "learn", "publish")}
            line |= {f"mismatch/{segment}_histogram": [1] * (len(RATIO_EDGES) + 1) for segment in SEGMENTS}
            journal.write(line, experience)


def warnings(run: Path) -> list[tuple[int, str]]:
    found = map(json.loads, (run / "activity.jsonl").read_text().splitlines())
    return [(line["step"], line["text"]) for line in found if line["kind"] == "warning"]


def test_a_sign_is_told_or_ends_the_run_behind_its_step(settings: Config, tmp_path: Path) -> None:
    settings.journal.images_every = 0
    empty = [[""] * SAMPLES] * GROUPS
    write(tmp_path / "warn", settings, [1, 2], empty)
    ((step, sentence),) = warnings(tmp_path / "warn")
    assert step == 1
    settings.train.on_warning = "stop"
    write(tmp_path / "healthy", settings, [1, 2])
    with pytest.raises(RunError, match="^step 1: every plan is empty: [^\n]*train.on_warning=stop") as error:
        write(tmp_path / "stop", settings, [1, 2], empty)
    assert sentence in str(error.value)
    assert warnings(tmp_path / "stop") == [(1, sentence)]
    (line,) = (tmp_path / "stop" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 1
    assert (tmp_path / "stop" / "rollouts" / "step_000001.parquet").is_file()


def test_a_run_that_goes_on_remembers_what_was_told_and_how_it_began(settings: Config, tmp_path: Path) -> None:
    """A sign is told once in WINDOW steps and the hacking index begins at the first of them, also over a resume."""
    settings.journal.images_every = settings.journal.dump_every = 0
    settings.experts["git"].role = "monitor"
    empty = [[""] * SAMPLES] * GROUPS
    write(tmp_path / "whole", settings, range(1, 14), empty)
    write(tmp_path / "resumed", settings, range(1, 12), empty)
    write(tmp_path / "resumed", settings, range(8, 14), empty)
    assert [step for step, _ in warnings(tmp_path / "resumed")] == [1]
    whole, resumed = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "resumed"))
    assert whole == resumed
    assert ["hacking/index" in json.loads(line) for line in whole.splitlines()] == [step >= 10 for step in range(1, 14)]
