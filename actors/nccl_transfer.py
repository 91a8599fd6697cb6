"""The learner's end of a transfer over NCCL, for GPUs: vLLM's weight-transfer interface by its documented API.

Weights go from GPU to GPU and never through the host. Only the sending side of vLLM's transfer is imported into the
learner's process: no engine, no process group of vLLM. `actors.transfer` says when which end does what.
"""

from collections.abc import Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.transfer import PACKING
from actors.weights import Digest
from learner.rank import LearnerRank


class DrivenFromOutside:
    """What vLLM's sender would call on the receiving side: the driver does, see `actors.transfer`."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class ShardedSource(WeightSource):
    """The learner's trained parameters, gathered one at a time on all ranks."""

    def __init__(self, rank: LearnerRank):
        self.rank = rank
        self.sent = Digest()

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self.rank.trainable_metadata()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.sent = Digest()
        for name, tensor in self.rank.gather_trainable():
            if self.rank.rank == 0:
                self.sent.add(name, tensor)
            yield name, tensor


class NcclSender:
    """Construct and use it on every learner rank."""

    def __init__(self, rank: LearnerRank, host: str, port: int, world_size: int):
        """host, port: where the transfer group meets, free on the node of learner rank 0; world_size: of that group."""
        self.source = ShardedSource(rank)
        info = NCCLTrainerInitInfo(host, port, world_size, rank=rank.rank, **PACKING)
        self.engine: TrainerWeightTransferEngine = WeightTransferTrainerFactory.trainer_init(
            info, client=DrivenFromOutside(), source=self.source
        )

    def send(self) -> str:
        """Broadcast the current parameters; returns their digest (on rank 0) when they are on the way."""
        self.engine.send_weights()
        return self.source.sent.hexdigest()
