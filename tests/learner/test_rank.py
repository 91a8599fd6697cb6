"""DeepSpeed ranks against plain PyTorch on the same tiny Janus: every ZeRO stage, one and two ranks, any cutting."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import JanusForConditionalGeneration

from learner.meter import RATIO_EDGES
from t2ir1_ray.checkpoints.weights import read_tensors
from t2ir1_ray.config import Config, LearnerConfig, PolicyConfig
from t2ir1_ray.fitting.memory import Shapes, checkpoint_bytes
from t2ir1_ray.janus.policy import FROZEN, load_config
from tests.learner.ranks import Result, Scenario, run_ranks
from tests.learner.samples import BETA, RATE, plain_training, random_batch
from tests.tiny_janus import IMAGE_TOKENS, tiny_model

pytestmark = pytest.mark.slow

STEPS = 6
BASE = {"dtype": "float32", "learning_rate": RATE, "beta": BETA, "gradient_checkpointing": False}


CHANGED = {
    "learning_rate": RATE / 10,
    "lr_schedule": "cosine",
    "warmup_steps": 0,
    "betas": (0.5, 0.6),
    "weight_decay": 0.25,
    "max_grad_norm": 0.125,
    "beta": 3 * BETA,
    "beta_schedule": "cosine",
}
CREDIT = {"token_credit": "similarity", "entropy_band": (0.999, 1.001), "entropy_weight": 20.0}
LORA = {"lora_rank": 4, "lora_alpha": 8.0}
SLOW_S = 3.0
SMALL_STEPS = {**LORA, "dtype": "bfloat16", "learning_rate": 1e-4, "gradient_checkpointing": True}


def scenario(name: str, stage: int, budget: int, **options: object) -> Scenario:
    learner = {**BASE, "zero_stage": stage, "tokens_per_batch": budget, **options.pop("learner", {})}
    return Scenario(name, STEPS, learner, **options)


ONE_RANK = [
    scenario("zero1, all at once", 1, 10_000),
    scenario("zero2, sample by sample", 2, 1),
    scenario("zero3, checkpointing", 3, 150, learner={"gradient_checkpointing": True}),
    scenario("zero2, off-policy", 2, 150, on_policy=False, learner={"correction": "clip"}),
    scenario("zero1, resumed", 1, 150, resume_after=1, learner={"warmup_steps": 2}),
    scenario("zero1, warm-up", 1, 150, learner={"warmup_steps": 2}),
    scenario("zero1, credit", 1, 150, learner=CREDIT),
    scenario("zero1, credit, resumed", 1, 150, resume_after=3, learner=CREDIT),
    scenario("zero1, LoRA", 1, 150, learner=LORA),
    scenario("zero2, guided", 2, 150, guidance=2.0),
    scenario("zero1, schedules", 1, 10_000, learner={"lr_schedule": "cosine", "beta_schedule": "linear"}),
    scenario(
        "zero1, extended",
        1,
        10_000,
        resume_after=4,
        planned=4,
        learner={"lr_schedule": "linear", "beta_schedule": "linear"},
    ),
    scenario("zero2, changed", 2, 10_000, resume_after=3, changed=CHANGED),
    scenario("zero3, changed", 3, 10_000, resume_after=3, changed=CHANGED, learner={"warmup_steps": 6}),
    scenario("bfloat16, zero1, changed", 1, 10_000, resume_after=3, changed=CHANGED, learner={"dtype": "bfloat16"}),
    *(scenario(f"bfloat16, zero{stage}", stage, 150, learner={"dtype": "bfloat16"}) for stage in (1, 2, 3)),
    replace(scenario("bfloat16, zero3, LoRA, sampled", 3, 150, sampled=True, learner=SMALL_STEPS), steps=10),
]
TWO_RANKS = [
    scenario("zero1, unequal shares", 1, 150, first_shard=5),
    scenario("zero2, equal shares", 2, 10_000),
    scenario("zero3, unequal shares", 3, 60, first_shard=5),
    scenario("zero3, an empty share", 3, 150, first_shard=7),
    scenario("zero3, resumed", 3, 150, resume_after=1, slow_disk_s=SLOW_S),
    scenario("zero3, credit, resumed", 3, 150, resume_after=3, first_shard=5, learner=CREDIT),
    scenario("zero3, LoRA, unequal shares", 3, 150, first_shard=5, learner=LORA),
    scenario("zero2, LoRA, resumed", 2, 10_000, resume_after=4, learner=LORA),
    scenario("zero3, guided", 3, 150, guidance=2.0),
    *(
        replace(scenario(f"bfloat16, zero{stage}, two ranks", stage, 60, learner={"dtype": "bfloat16"}), steps=3)
        for stage in (1, 3)
    ),
]


@pytest.fixture(scope="module")
def batches() -> list:
    return [random_batch(seed) for seed in range(STEPS)]


@pytest.fixture(scope="module")
def plain(batches: list) -> tuple[list[float], dict[str, torch.Tensor]]:
    return plain_training(batches)


@pytest.fixture(scope="module")
def results(tiny_janus: Path, tmp_path_factory: pytest.TempPathFactory, batches: list) -> dict[str, Result]:
    one = run_ranks(tmp_path_factory.mktemp("one"), tiny_janus, 1, batches, ONE_RANK)
    two = run_ranks(tmp_path_factory.mktemp("two"), tiny_janus, 2, batches, TWO_RANKS)
    return one | two


def assert_learned(result: Result, losses: list[float], parameters: dict[str, torch.Tensor]) -> None:
    for metrics in result.metrics:  # every rank reports the whole batch
        assert [step["loss"] for step in metrics] == pytest.approx(losses, abs=1e-5)
    assert result.state.keys() == parameters.keys()
    for name, tensor in parameters.items():
        difference = (result.state[name] - tensor).abs()
        assert difference.mean() < 1e-7, name
        assert difference.max() < 0.1 * RATE, name  # Adam divides: a gradient near 0 turns rounding into a visible step


@pytest.mark.parametrize(
    "name",
    [
        "zero1, all at once",
        "zero2, sample by sample",
        "zero3, checkpointing",
        "zero1, unequal shares",
        "zero2, equal shares",
        "zero3, unequal shares",
        "zero3, an empty share",
        "zero3, resumed",
    ],
)
def test_deepspeed_learns_what_plain_adamw_learns(name: str, results: dict[str, Result], plain: tuple) -> None:
    assert_learned(results[name], *plain)


@pytest.mark.parametrize("name", ["zero1, LoRA", "zero3, LoRA, unequal shares", "zero2, LoRA, resumed"])
def test_lora_learns_what_peft_under_plain_adamw_learns(name: str, results: dict[str, Result], batches: list) -> None:
    targets = rf"model\.language_model\..*({'|'.join(LearnerConfig().lora_targets)})"
    adapters = LoraConfig(r=4, lora_alpha=8.0, target_modules=targets)
    assert_learned(results[name], *plain_training(batches, lora=adapters))


def test_an_exported_adapter_is_the_merged_policy(results: dict[str, Result], tiny_janus: Path) -> None:
    exported = results["zero3, LoRA, unequal shares"].exported
    policy = JanusForConditionalGeneration.from_pretrained(tiny_janus, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(policy, exported / "adapter").merge_and_unload().state_dict()
    for name, tensor in read_tensors(exported, "policy.path").items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-5, atol=1e-6)
    adapter = (exported / "adapter" / "adapter_model.safetensors").stat().st_size
    assert adapter < 0.2 * (exported / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["zero2, guided", "zero3, guided"])
def test_guided_logprobs_are_trained_on(name: str, results: dict[str, Result], batches: list) -> None:
    assert_learned(results[name], *plain_training(batches, guidance=2.0))


def test_schedules_end_near_zero(results: dict[str, Result]) -> None:
    steps = results["zero1, schedules"].metrics[0]
    cosine = [RATE * (1 + np.cos(np.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert [step["lr"] for step in steps] == pytest.approx(cosine)
    assert [step["beta"] for step in steps] == pytest.approx([BETA * (1 - step / STEPS) for step in range(STEPS)])


def test_off_policy_updates_clip_the_ratio_to_the_sampling_policy(results: dict[str, Result], batches: list) -> None:
    result = results["zero2, off-policy"]
    assert_learned(result, *plain_training(batches, on_policy=False))
    assert result.metrics[0][0]["clip_fraction/image"] > 0.05
    assert results["zero1, all at once"].metrics[0][0]["clip_fraction/image"] == 0


@pytest.mark.parametrize("name", ["zero1, credit", "zero3, credit, resumed"])
def test_token_credit_and_held_entropies_are_trained_on(name: str, results: dict[str, Result], batches: list) -> None:
    """The band is so narrow that the entropies leave it at once, and the weights follow them. Credit by similarity: the
    other kinds go by ranks, where rounding may decide between two tokens; their gradients: see test_crediting.py."""
    band, most = CREDIT["entropy_band"], CREDIT["entropy_weight"]
    assert_learned(results[name], *plain_training(batches, credit="similarity", band=band, most=most))
    first, *_, last = steps = results[name].metrics[-1]
    for segment in ("semantic", "image"):
        ratio = last[f"entropy/{segment}"] / first[f"entropy/{segment}"]
        assert last[f"entropy_ratio/{segment}"] == pytest.approx(ratio)
        assert max(abs(step[f"entropy_weight/{segment}"]) for step in steps) > 1e-3


@pytest.mark.parametrize(
    ("resumed", "whole"), [("zero1, resumed", "zero1, warm-up"), ("zero1, credit, resumed", "zero1, credit")]
)
def test_a_resumed_run_is_the_uninterrupted_run(resumed: str, whole: str, results: dict[str, Result]) -> None:
    resumed, whole = results[resumed], results[whole]
    assert resumed.metrics == whole.metrics
    assert all(torch.equal(resumed.state[name], tensor) for name, tensor in whole.state.items())


@pytest.mark.parametrize("name", ["zero3, resumed", "zero2, LoRA, resumed"])
def test_every_rank_knows_the_files_that_it_wrote(name: str, results: dict[str, Result]) -> None:
    saved, (first, second) = results[name].saved, results[name].written
    there = {str(file.relative_to(saved)): file.stat().st_size for file in saved.rglob("*") if file.is_file()}
    assert not first.keys() & second.keys()
    assert first | second == there
    for rank, files in enumerate((first, second)):
        assert any(file.endswith(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt") for file in files), files


def test_while_rank_0_writes_to_a_slow_disk_nobody_waits_in_a_collective_operation(results: dict[str, Result]) -> None:
    """Which NCCL would end, and the run with it."""
    first, second = results["zero3, resumed"].export_s
    assert second < SLOW_S < first


@pytest.mark.parametrize("name", ["zero1, resumed", "zero2, changed", "zero3, changed", "bfloat16, zero1, changed"])
def test_a_checkpoint_is_as_large_as_the_doctor_says(name: str, results: dict[str, Result], tiny_janus: Path) -> None:
    """But for names and alignment, a tenth of so small a policy."""
    whole = {scenario.name: scenario.learner for scenario in ONE_RANK}[name]
    config = Config(policy=PolicyConfig(path=str(tiny_janus)), learner=LearnerConfig(**whole))
    shapes = Shapes.of(load_config(str(tiny_janus)))
    policy = 2 * (shapes.language + shapes.generation + shapes.understanding + shapes.vq)
    saved = sum(file.stat().st_size for file in results[name].saved.rglob("*.pt"))
    assert checkpoint_bytes(config, shapes) - policy == pytest.approx(saved, rel=0.1)


def test_an_extended_run_follows_the_schedule_of_its_new_length(results: dict[str, Result]) -> None:
    steps = results["zero1, extended"].metrics[0]
    before = [1 - step / 4 for step in range(4)]
    after = [1 - step / STEPS for step in range(4, STEPS)]
    assert [step["lr"] for step in steps] == pytest.approx([RATE * part for part in before + after])
    assert [step["beta"] for step in steps] == pytest.approx([BETA * part for part in before + after])


@pytest.mark.parametrize("name", ["zero2, changed", "zero3, changed", "bfloat16, zero1, changed"])
def test_what_the_configuration_says_beats_what_a_checkpoint_holds(name: str, results: dict[str, Result]) -> None:
    result = results[name]
    cosine = [(1 + np.cos(np.pi * step / STEPS)) / 2 for step in range(3, STEPS)]
    assert [step["lr"] for step in result.metrics[0]][3:] == pytest.approx([RATE / 10 * part for part in cosine])
    assert [step["beta"] for step in result.metrics[0]][3:] == pytest.approx([3 * BETA * part for part in cosine])
    assert result.settings == {"betas": [0.5, 0.6], "weight_decay": 0.25, "clip": 0.125}


def test_warm_up_starts_above_zero_and_ends_at_the_full_rate(results: dict[str, Result]) -> None:
    rates = [step["lr"] for step in results["zero1, warm-up"].metrics[0]]
    assert rates == pytest.approx([RATE / 3, 2 * RATE / 3, *[RATE] * (STEPS - 2)])


def test_lora_in_bfloat16_stays_the_policy_that_it_publishes(results: dict[str, Result]) -> None:
    """On-policy steps with updates below the last bit of most weights, under ZeRO-3 and recomputation. What is left is
    that the sampler's batch is cut otherwise, which bfloat16 sees here and there, at the end no more than at first."""
    steps = results["bfloat16, zero3, LoRA, sampled"].metrics[0]
    for segment in ("semantic", "image"):
        mean = np.array([step[f"mismatch/{segment}_abs_mean"] for step in steps])
        assert mean.max() < 3e-4
        for step in steps:
            assert step["grad_norm"] > 0
            assert step[f"mismatch/{segment}_max"] < 0.02
            assert step[f"mismatch/{segment}_ratio_mean"] == pytest.approx(1, abs=1e-3)


def test_a_figure_that_is_not_finite_ends_the_run_by_its_name(tiny_janus: Path, tmp_path: Path, batches: list) -> None:
    """A log-prob of one sample, of an engine with broken weights: an on-policy step's loss knows nothing of it."""
    logprobs = list(batches[0].semantic_logprobs)
    logprobs[4] = logprobs[4] * np.nan
    broken = replace(batches[0], semantic_logprobs=logprobs)
    why = r"RunError: update \(sample 1 of prompt 1\): not finite: mismatch/semantic_kl=nan, "
    with pytest.raises(AssertionError, match=why):
        run_ranks(tmp_path, tiny_janus, 1, [broken], [replace(ONE_RANK[0], steps=1)])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_keeps_float32_masters(stage: int, results: dict[str, Result], plain: tuple) -> None:
    losses, parameters = plain
    result = results[f"bfloat16, zero{stage}"]
    assert result.metrics[0][0]["loss"] == pytest.approx(losses[0], abs=0.05)
    start = dict(tiny_model(0).named_parameters())
    moved = torch.cat([(tensor.float() - start[name]).flatten() for name, tensor in result.state.items()])
    expected = torch.cat([(parameters[name] - start[name]).flatten() for name in result.state])
    assert torch.cosine_similarity(moved, expected, 0) > 0.8
    assert all(tensor.dtype == torch.bfloat16 for tensor in result.state.values())


def test_gradients_of_several_ranks_add_up_in_float32(results: dict[str, Result]) -> None:
    """In bfloat16 each stage, which adds them up elsewhere, would round them otherwise: by 1e-3."""
    norms = [[step["grad_norm"] for step in results[f"bfloat16, zero{n}, two ranks"].metrics[0]] for n in (1, 3)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("name", ["zero1, all at once", "zero3, unequal shares"])
def test_exports_hold_what_was_trained_and_leave_the_rest_alone(
    name: str, results: dict[str, Result], tiny_janus: Path
) -> None:
    before, after = read_tensors(tiny_janus, "policy.path"), read_tensors(results[name].exported, "policy.path")
    assert before.keys() == after.keys()
    for key, tensor in after.items():
        if key.startswith(FROZEN):
            torch.testing.assert_close(tensor, before[key], rtol=0, atol=0)
        else:
            torch.testing.assert_close(tensor, results[name].state[key], rtol=0, atol=0)
            assert not torch.equal(tensor, before[key])


def test_metrics_tell_learner_and_sampler_apart(results: dict[str, Result], batches: list) -> None:
    """The first step is the untouched policy, whose log-probs the batch holds with normal noise of 0.2."""
    metrics = dict(results["zero3, unequal shares"].metrics[0][0])
    plan_tokens = sum(len(ids) for ids in batches[0].semantic_ids)
    image_tokens = len(batches[0]) * IMAGE_TOKENS
    assert metrics["tokens"] == plan_tokens + image_tokens
    for kind in ("semantic", "image"):
        assert metrics[f"mismatch/{kind}_kl"] == pytest.approx(0.2**2 / 2, rel=0.5)
        assert metrics[f"mismatch/{kind}_ratio_mean"] == pytest.approx(1, abs=0.1)
        assert 0.2 < np.log(metrics[f"mismatch/{kind}_ratio_max"]) < metrics[f"mismatch/{kind}_max"] + 1e-6 < 1.0
        assert 0 < metrics[f"entropy/{kind}"] <= np.log(64)
        histogram = np.array(metrics[f"mismatch/{kind}_histogram"])
        assert histogram.sum() == {"semantic": plan_tokens, "image": image_tokens}[kind]
        inside = [-0.2 <= low < high <= 0.2 for low, high in pairwise([-np.inf, *RATIO_EDGES, np.inf])]
        assert histogram[inside].sum() / histogram.sum() == pytest.approx(0.68, abs=0.1)  # within one sigma
    both = metrics["segment_kl/semantic"] * plan_tokens + metrics["segment_kl/image"] * image_tokens
    assert metrics["kl"] == pytest.approx(both / metrics["tokens"])
    singly = dict(results["zero2, sample by sample"].metrics[0][0])
    for kind in ("semantic", "image"):
        assert singly.pop(f"mismatch/{kind}_histogram") == metrics.pop(f"mismatch/{kind}_histogram")
    assert singly.pop("padding") == 0 < metrics.pop("padding") < 0.5
    assert singly == pytest.approx(metrics, rel=1e-4, abs=1e-5)  # the only figure that depends on the cutting
