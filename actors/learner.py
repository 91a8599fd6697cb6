"""LearnerActor: one DeepSpeed rank in a Ray actor, and the packing of new policy versions."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from actors.startup import uncollected
from actors.usage import Usage, Used
from t2ir1_ray.config import LearnerConfig, PolicyConfig

if TYPE_CHECKING:
    from actors.weights import Weights


class LearnerActor:
    """What ranks do together (all but `address` and `join_transfer`) must be called on all of them."""

    def __init__(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        rank: int,
        world_size: int,
        temperature: float,
        guidance: float,
        steps: int,
    ):
        self.usage = Usage()
        with uncollected():
            from learner.rank import LearnerRank

            self.rank = LearnerRank(policy, config, rank, world_size, temperature, guidance, steps)

    def address(self, routable: bool) -> tuple[str, int]:
        """Host and a free port of this actor's node; loopback unless other machines must reach it."""
        host = ray.util.get_node_ip_address() if routable else "127.0.0.1"
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def join_ranks(self, host: str, port: int) -> None:
        with uncollected():  # imports DeepSpeed
            self.rank.join_ranks(host, port)

    def step(self, batch: pa.RecordBatch, on_policy: bool) -> dict[str, Any]:
        """One update on this rank's share of the batch; metrics are reduced over ranks."""
        with self.usage("learn", len(batch), batch.nbytes):
            return self.rank.step(batch, on_policy)

    def publish(self, version: int) -> "tuple[Weights | None, str | None]":
        """The current parameters as `version`, and their checksum; None on ranks other than 0."""
        from actors.weights import Weights, checksum

        with self.usage("publish") as call:
            state = self.rank.trainable_state()
            if state is None:
                return None, None
            call.moved = sum(tensor.nbytes for tensor in state.values())
            return Weights.pack(version, state), checksum(state)

    def join_transfer(self, host: str, port: int, actors: list[Any], timeout_s: float) -> None:
        """Open the NCCL transfer to the rollout actors."""
        from actors.nccl_transfer import NcclSender  # imports the sending side of vLLM's transfer: on request only

        self.sender = NcclSender(self.rank, host, port, actors, timeout_s)

    def send(self, version: int) -> str:
        """Publish over NCCL; returns the digest on rank 0."""
        with self.usage("send"):
            return self.sender.send(version)

    def write_checkpoint(self, folder: str) -> None:
        """Write the policy as a checkpoint that plain transformers loads, and beside it what `restore_state` needs."""
        self.rank.export_policy(Path(folder))
        self.rank.save_state(Path(folder))

    def restore_state(self, folder: str, ranks: int) -> None:
        """Go on where `write_checkpoint` was called on so many ranks: exactly, if they are as many as now."""
        self.rank.restore_state(Path(folder), ranks)

    def used(self) -> Used:
        return self.usage.report()
