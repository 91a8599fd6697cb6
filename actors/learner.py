"""LearnerActor: one DeepSpeed rank in a Ray actor, and the packing of new policy versions."""

import math
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from actors.network import use_nodes_interface
from actors.startup import take_device, uncollected
from t2ir1_ray.config import LearnerConfig, PolicyConfig

if TYPE_CHECKING:
    from actors.weights import Weights


class LearnerActor:
    """What ranks do together (all but `address` and `layout`) must be called on all of them."""

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
        with uncollected():
            from learner.rank import LearnerRank

            take_device()
            self.rank = LearnerRank(policy, config, rank, world_size, temperature, guidance, steps)

    def address(self, routable: bool) -> tuple[str, int]:
        """Host and a free port of this actor's node; loopback unless other machines must reach it."""
        host = ray.util.get_node_ip_address() if routable else "127.0.0.1"
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def join_ranks(self, host: str, port: int, timeout_s: float) -> None:
        if self.rank.world_size > 1:
            use_nodes_interface()
        with uncollected():  # imports DeepSpeed
            self.rank.join_ranks(host, port, timeout_s)

    def step(self, batch: pa.RecordBatch, on_policy: bool) -> dict[str, Any]:
        """One update on this rank's share of the batch; metrics are reduced over ranks."""
        return self.rank.step(batch, on_policy)

    def version_bytes(self) -> int:
        """Of the parameters that training changes."""
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.rank.trainable_metadata())

    def publish(self, version: int) -> "tuple[Weights | None, str | None]":
        """The current parameters as `version`, and their digest; None on ranks other than 0.

        On a CPU the parameters themselves: Ray copies them, once, before the next call.
        """
        from actors.weights import Digest, Weights

        state, digest = {}, Digest()
        for name, tensor in self.rank.gather_trainable():
            if self.rank.rank == 0:
                digest.add(name, tensor)
                state[name] = tensor.cpu()
        if self.rank.rank:
            return None, None
        return Weights.pack(version, state), digest.hexdigest()

    def layout(self) -> dict[str, list[Any]]:
        """Names, dtypes and shapes of what `send` sends, in its order."""
        names, dtypes, shapes = zip(*self.rank.trainable_metadata(), strict=True)
        dtype_names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        return {"names": list(names), "dtype_names": dtype_names, "shapes": list(map(list, shapes))}

    def join_transfer(self, host: str, port: int, world_size: int) -> None:
        """Open this end of the transfer over NCCL. It and `send`: see `actors.transfer`."""
        use_nodes_interface()
        from actors.nccl_transfer import NcclSender  # imports the sending side of vLLM's transfer: on request only

        self.sender = NcclSender(self.rank, host, port, world_size)

    def send(self) -> str:
        """The current parameters to all rollout actors; returns their digest on rank 0."""
        return self.sender.send()

    def write_checkpoint(self, folder: str) -> dict[str, int]:
        """Write the policy as a checkpoint that plain transformers loads, and beside it what `restore_state` needs.

        Returns the files that this rank has written, and their bytes: other machines must see the same.
        """
        self.rank.save_state(Path(folder))
        self.rank.export_policy(Path(folder))
        return self.rank.written(Path(folder))

    def restore_state(self, folder: str, ranks: int) -> None:
        """Go on where `write_checkpoint` was called on so many ranks: exactly, if they are as many as now."""
        self.rank.restore_state(Path(folder), ranks)
