"""LearnerActor: one DeepSpeed rank in a Ray actor, and the packing of new policy versions."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.weights import Weights, checksum
from learner.rank import LearnerRank
from t2ir1_ray.config import LearnerConfig, PolicyConfig


class LearnerActor:
    """What ranks do together (`connect`, `step`, `publish`, `send`, `export`) must be called on all of them."""

    def __init__(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        rank: int,
        world_size: int,
        temperature: float,
    ):
        self.rank = LearnerRank(policy, config, rank, world_size, temperature=temperature)

    def address(self) -> tuple[str, int]:
        return self.rank.address()

    def connect(self, host: str, port: int) -> None:
        self.rank.connect(host, port)

    def step(self, batch: pa.RecordBatch) -> dict[str, float]:
        """One update on this rank's share of the batch; metrics are reduced over ranks."""
        return self.rank.step(batch)

    def publish(self, version: int) -> tuple[Weights | None, str | None]:
        """The current parameters as `version`, and their checksum; None on ranks other than 0."""
        state = self.rank.trainable_state()
        if state is None:
            return None, None
        return Weights.pack(version, state), checksum(state)

    def join_transfer(self, host: str, port: int, actors: list[Any], timeout_s: float) -> None:
        """Open the NCCL transfer to the rollout actors."""
        from actors.nccl_transfer import NcclSender  # imports the sending side of vLLM's transfer: on request only

        self.sender = NcclSender(self.rank, host, port, actors, timeout_s)

    def send(self, version: int) -> str:
        """Publish over NCCL; returns the digest on rank 0."""
        return self.sender.send(version)

    def export(self, folder: str) -> None:
        """Write the policy as a checkpoint that plain transformers loads."""
        self.rank.export(Path(folder))
