"""A short run of what the recipe does not do, all at once: LoRA on a part of a fused weight, log-probs of the guided
distribution, several images for a plan, credit by token, held entropies, and deterministic operations."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch

from actors.cluster import Cluster
from actors.startup import DETERMINISTIC
from tests.system.runs import run

pytestmark = pytest.mark.slow


def switches(_: Any) -> tuple[bool, bool, str | None, str | None]:
    """Of an actor's process."""
    modes = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return *modes, os.environ.get(DETERMINISTIC), os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_the_sampler_has_the_policy_that_is_trained(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs of vLLM, decoder and learner agree, of the guided distribution; every role does as it was told."""
    found: dict[str, Any] = {}
    stop = Cluster.stop

    def ask_and_stop(self: Cluster) -> None:
        if not self.stopped:
            roles = {"learner": self.learners, "rollout": self.rollouts.actors, "reference": self.reference.actors}
            roles |= {name: pool.actors for name, pool in self.experts.items()}
            found.update({name: ray.get(actors[0].__ray_call__.remote(switches)) for name, actors in roles.items()})
        stop(self)

    monkeypatch.setattr(Cluster, "stop", ask_and_stop)
    lora = ["learner.lora_rank=4", "learner.lora_targets=[q_proj]", "learner.learning_rate=1e-2"]
    guided = ["rollout.guidance=1.5", "learner.image_logprobs=guided"]
    nested = ["rollout.images_per_plan=2", "learner.advantages=nested"]
    credit = ["learner.token_credit=guidance", "learner.entropy_band=[0.8,1.2]"]
    others = ["train.deterministic=true", "train.steps=3", "eval.every=0", "data.prompts_per_step=6"]
    lines = run(tmp_path / "run", *lora, *guided, *nested, *credit, *others)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["grad_norm"] > 0
        assert 0.5 < line["entropy_ratio/image"] < 2
        assert line["entropy_ratio/image"] == pytest.approx(line["entropy/image"] / lines[0]["entropy/image"], rel=1e-4)
        assert line["plan/truncated"] < 0.2
        assert line["reward/mean"] > 0.3
        for segment in ("semantic", "image"):
            assert line[f"mismatch/{segment}_max"] < 1e-4, line["step"]
            assert line[f"mismatch/{segment}_abs_mean"] < 1e-5
            assert line[f"mismatch/{segment}_ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert lines[0]["entropy_ratio/image"] == 1
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[2]["kl"] > 1e-6  # the sampler's policy moves with the learner's
    plans = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet")["plan"].to_pylist()
    assert plans[::2] == plans[1::2]
    cublas = ":4096:8"
    assert found == {
        "learner": (True, False, "error", cublas),
        "reference": (True, True, "warn", cublas),
        "hps": (True, True, "warn", cublas),
        "rollout": (False, False, None, None),  # on a CPU
    }
