"""One DeepSpeed rank on the device: every ZeRO stage, LoRA, a resumed run, and two equal runs compared bit by bit."""

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from learner.rank import LearnerRank
from t2ir1_ray.config import LearnerConfig, PolicyConfig
from t2ir1_ray.records.schema import LearnerBatch
from tests.learner.samples import random_batch
from tests.ports import free_port
from tests.tiny_janus import write_tiny_janus

STEPS, SAVED = 3, 2
LEARNERS = {
    "zero 1": {"zero_stage": 1},
    "zero 2": {"zero_stage": 2},
    "zero 3": {"zero_stage": 3},
    "zero 3, LoRA": {"zero_stage": 3, "lora_rank": 4, "lora_alpha": 8.0},
}

Trained = tuple[list[dict[str, object]], dict[str, torch.Tensor]]


def figures(tiny: bool) -> Iterator[dict[str, object]]:
    """The policy is tiny in either case: it is DeepSpeed's code that is tried."""
    if find_spec("deepspeed") is None:
        yield {"skipped": "deepspeed is not installed"}
        return
    batches = [random_batch(seed) for seed in range(STEPS)]
    chosen = ["zero 3, LoRA"] if tiny else LEARNERS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        policy = str(write_tiny_janus(folder / "policy"))
        for name in chosen:
            learner = LearnerConfig(learning_rate=1e-3, tokens_per_batch=150, **LEARNERS[name])
            saved = folder / name.replace(" ", "-")
            whole = _trained(policy, learner, batches, save=saved)
            again = _trained(policy, learner, batches)
            resumed = _trained(policy, learner, batches, resume=saved)
            yield {
                "learner": name,
                "losses": [step["loss"] for step in whole[0]],
                "equal_runs_equal_metrics": whole[0] == again[0],
                "equal_runs_equal_bits": _equal(whole, again),
                "resumed_run_equal_metrics": whole[0][SAVED:] == resumed[0],
                "resumed_run_equal_bits": _equal(whole, resumed),
            }


def _trained(
    policy: str,
    config: LearnerConfig,
    batches: list[LearnerBatch],
    save: Path | None = None,
    resume: Path | None = None,
) -> Trained:
    """Metrics of each step and the trained parameters; `resume`: after the steps that stood behind `save`."""
    rank = LearnerRank(PolicyConfig(path=policy), config, 0, 1, steps=STEPS)
    rank.join_ranks("127.0.0.1", free_port())
    if resume:
        rank.restore_state(resume)
    metrics = []
    for step in range(SAVED if resume else 0, STEPS):
        if save and step == SAVED:
            rank.save_state(save)
        metrics.append(rank.step(batches[step].to_arrow()))
    state = rank.trainable_state()
    if save:
        rank.export_policy(save / "exported")
    return metrics, state


def _equal(one: Trained, other: Trained) -> bool:
    return all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())
