"""RolloutActor: prompts in, groups of (plan, image) samples out, streamed as Arrow record batches."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from actors.network import use_nodes_interface
from actors.sampling import Sampling
from actors.startup import uncollected
from actors.transfer import PACKING
from t2ir1_ray.config import PolicyConfig, RolloutConfig
from t2ir1_ray.errors import RunError
from t2ir1_ray.records.schema import PROMPT_SCHEMA

if TYPE_CHECKING:
    from actors.weights import Weights


class RolloutActor:
    """A `Sampler` that other processes ask for samples and hand new policy versions."""

    def __init__(
        self, policy: PolicyConfig, rollout: RolloutConfig, awaits_weights: bool = True, on_checkpoint: bool = False
    ):
        """`awaits_weights`, `on_checkpoint`: as of `Sampler`."""
        with uncollected():
            from actors.sampler import Sampler
        with uncollected():
            self.sampler = Sampler(policy, rollout, awaits_weights, on_checkpoint)

    def take_version(self, weights: "Weights") -> tuple[int, str]:
        """Replace the trained parameters; returns the version and the digest of what the model took in."""
        return weights.version, self.sampler.take_version(weights.version, weights.unpack())

    def join_transfer(self, host: str, port: int, world_size: int, rank: int) -> None:
        """Enter the group in which policy versions come over NCCL. It and what follows: see `actors.transfer`."""
        use_nodes_interface()
        place = {"master_address": host, "master_port": port, "world_size": world_size, "rank_offset": rank}
        self.sampler.engine.join_transfer(place | PACKING)

    def start_update(self) -> None:
        self.sampler.version = None  # until the update is whole there is no policy here
        self.sampler.engine.start_update()

    def receive_update(self, layout: dict[str, Any]) -> None:
        self.sampler.engine.receive_update(layout)

    def finish_update(self, version: int) -> tuple[int, str]:
        """Returns the version and the digest of what the model took in."""
        digest = self.sampler.engine.finish_update()
        self.sampler.version = version
        return version, digest

    def generate(
        self, prompts: pa.Table, sampling: Sampling, version: int, weights: list[ray.ObjectRef]
    ) -> Iterator[pa.RecordBatch]:
        """`sampling.group_size` samples of every prompt under policy `version`, one `Rollouts` batch per prompt.

        `weights`: one reference, read only if this actor does not hold `version` (it was restarted); empty with NCCL.
        """
        held = self.sampler.version
        if held != version:
            if not weights:
                raise RunError(f"holds version {held} instead of {version}, and NCCL transfers cannot be replayed")
            self.take_version(ray.get(weights[0]))
        rows = [prompt for prompt in prompts.cast(PROMPT_SCHEMA).to_pylist() for _ in range(sampling.group_size)]
        samples = self.sampler.sample(rows, list(range(sampling.group_size)) * len(prompts), sampling)
        for start in range(0, len(rows), sampling.group_size):
            yield samples.take(range(start, start + sampling.group_size)).to_arrow()
