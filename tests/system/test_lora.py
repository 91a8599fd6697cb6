"""A short run with LoRA on a part of a fused weight, which is also told to be deterministic: the sampler has the policy
that is trained, and every role's process has what it was told."""

import os
from pathlib import Path
from typing import Any

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


def test_lora_on_one_projection_samples_what_it_trains(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    lines = run(tmp_path / "run", *lora, "train.deterministic=true", "train.steps=3", "eval.every=0")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["plan/truncated"] < 0.2
        assert line["reward/mean"] > 0.3
        for segment in ("semantic", "image"):
            assert line[f"mismatch/{segment}_max"] < 1e-4, line["step"]
            assert line[f"mismatch/{segment}_abs_mean"] < 1e-5
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[2]["kl"] > 1e-6  # the sampler's policy moves with the learner's
    cublas = ":4096:8"
    assert found == {
        "learner": (True, False, "error", cublas),
        "reference": (True, True, "warn", cublas),
        "hps": (True, True, "warn", cublas),
        "rollout": (False, False, None, None),  # on a CPU
    }
