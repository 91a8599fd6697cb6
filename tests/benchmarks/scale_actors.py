"""Stand-ins for the actors of a run: the same methods and the same records, and sleeps where the models would work.

Their processes import neither torch nor vLLM. What they do beside sleeping counts as part of the sleep.
"""

import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.sampling import Sampling
from t2ir1_ray.config import PolicyConfig, RolloutConfig
from t2ir1_ray.records.schema import ReferenceLogprobs, Rollouts, Scores
from tests.benchmarks.scale_ideal import Durations

SIDE, CODES, PLAN_PROMPT, PLAN, IMAGE_PROMPT = 384, 576, 160, 80, 90
"""Pixels and tokens of an image, tokens of the texts, as `fitting.step_time` assumes them."""
VERSION_BYTES = 16 << 20
"""Of a policy version here; the time of a real one's way is in the sleeps."""
BINS = 15
"""Of log ratios, see `learner.meter.RATIO_EDGES`: its module imports torch."""


@dataclass(frozen=True)
class Version:
    version: int
    digest: str
    payload: np.ndarray


class StandIn:
    """durations: set in the subclass that an actor is started from."""

    durations: Durations

    def __init__(self, *_: Any):
        self.role, _, number = ray.get_runtime_context().get_actor_name().rpartition("-")
        self.number = int(number)

    @contextmanager
    def lasting(self, kind: str, *which: object) -> Iterator[None]:
        """The block takes as long as was drawn."""
        end = time.perf_counter() + self.durations.of(kind, *which)
        yield
        time.sleep(max(0.0, end - time.perf_counter()))


class Rollout(StandIn):
    """In place of `actors.rollout.RolloutActor`."""

    def __init__(self, policy: PolicyConfig, rollout: RolloutConfig, *_: Any):
        super().__init__()
        noise = np.random.default_rng(0)
        shape = (rollout.group_size, 12, 12, 3)
        coarse = noise.integers(0, 240, shape, np.uint8).repeat(SIDE // 12, 1).repeat(SIDE // 12, 2)
        self.pixels = coarse + noise.integers(0, 8, coarse.shape, np.uint8)  # a PNG takes half of it, as of a photo

    def take_version(self, weights: Version) -> tuple[int, str]:
        with self.lasting("load", weights.version, self.number):
            return weights.version, weights.digest

    def generate(
        self, prompts: pa.Table, sampling: Sampling, version: int, weights: list[ray.ObjectRef]
    ) -> Iterator[pa.RecordBatch]:
        ids = prompts["prompt_id"].to_pylist()
        step = int(sampling.stream.removeprefix("step "))
        with self.lasting("rollout", step, ids[0]):
            groups = [self._group(prompt_id, step, version, sampling.group_size) for prompt_id in ids]
        for group in groups:
            yield group.to_arrow()

    def _group(self, prompt_id: str, step: int, version: int, size: int) -> Rollouts:
        """The seeds say for which step it is."""
        return Rollouts(
            prompt_id=[prompt_id] * size,
            sample=np.arange(size, dtype=np.int32),
            policy_version=np.full(size, version, np.int32),
            seed=np.full(size, step, np.int64),
            semantic_prompt_ids=[np.zeros(PLAN_PROMPT, np.int32)] * size,
            semantic_ids=[np.zeros(PLAN, np.int32)] * size,
            semantic_logprobs=[np.full(PLAN, -1, np.float32)] * size,
            plan_truncated=np.zeros(size, bool),
            plan=["a plan of what is to be drawn"] * size,
            image_prompt_ids=[np.zeros(IMAGE_PROMPT, np.int32)] * size,
            image_ids=np.zeros((size, CODES), np.int32),
            image_logprobs=np.full((size, CODES), -1, np.float32),
            pixels=self.pixels,
        )


class Expert(StandIn):
    """In place of `actors.expert.ExpertActor`, with a model that is busy with one group at a time."""

    def __init__(self, *_: Any):
        super().__init__()
        self.model = threading.Lock()

    def score(self, rollouts: pa.RecordBatch, prompts: list[dict[str, Any]]) -> pa.RecordBatch:
        samples = Rollouts.from_arrow(rollouts)
        step, prompt = int(samples.seed[0]), samples.prompt_id[0]
        with self.model, self.lasting(self.role, step, prompt):
            noise = np.random.default_rng((step, zlib.crc32(f"{self.role} {prompt}".encode())))
            score = noise.random(samples.sample.max() + 1, np.float32)[samples.sample]  # an image's, wherever it stands
            return Scores(score, ["ok"] * len(samples), [None] * len(samples)).to_arrow()


class Reference(StandIn):
    """In place of `actors.reference.ReferenceActor`."""

    def logprobs(self, rollouts: pa.RecordBatch) -> pa.RecordBatch:
        samples = Rollouts.from_arrow(rollouts)
        with self.lasting(self.role, int(samples.seed[0]), samples.prompt_id[0]):
            return ReferenceLogprobs(samples.semantic_logprobs, samples.image_logprobs).to_arrow()


class Learner(StandIn):
    """In place of `actors.learner.LearnerActor`."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.steps = 0

    def address(self, routable: bool) -> tuple[str, int]:
        return "127.0.0.1", 0

    def join_ranks(self, host: str, port: int, timeout_s: float) -> None:
        pass

    def version_bytes(self) -> int:
        return VERSION_BYTES

    def step(self, batch: pa.RecordBatch, on_policy: bool) -> dict[str, Any]:
        self.steps += 1
        tokens = batch.num_rows * (PLAN + CODES)
        with self.lasting(self.role, self.steps, self.number):
            histogram = [0] * (BINS // 2) + [tokens] + [0] * (BINS // 2)
            drift = {f"mismatch/{segment}_histogram": histogram for segment in ("semantic", "image")}
            return {"loss": 0.0, "kl": 0.0, "tokens": float(tokens), "entropy/image": 1.0, **drift}

    def publish(self, version: int) -> tuple[Version | None, str | None]:
        if self.number:
            return None, None
        with self.lasting("publish", version):
            digest = f"version {version}"
            return Version(version, digest, np.zeros(VERSION_BYTES, np.uint8)), digest


STAND_INS = {"RolloutActor": Rollout, "ExpertActor": Expert, "ReferenceActor": Reference, "LearnerActor": Learner}
"""By the names that `actors.spawning` has for the classes."""
