"""New policy versions over NCCL, for GPUs: vLLM's own weight-transfer interface, written against its documented API.

Learner rank 0 is NCCL rank 0, rollout actor i is rank 1 + i; every learner rank joins the gathering of ZeRO-3 shards.
Weights go from GPU to GPU and never through the host. Only the sending side of vLLM's transfer is imported into the
learner's process: no engine, no process group of vLLM.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.calls import numbered, wait_for_all
from actors.weights import Digest
from learner.rank import LearnerRank


class RolloutClient:
    """What vLLM's sender calls on the receiving side, fanned out to every rollout actor."""

    def __init__(self, actors: Sequence[Any], timeout_s: float):
        self.actors = actors
        self.timeout_s = timeout_s
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each independent engine needs a rank of its own behind the sender's."""
        self._all("join_transfer", [{**init_info, "rank_offset": 1 + index} for index in range(len(self.actors))])

    def start_weight_update(self) -> None:
        self._all("start_update", [None] * len(self.actors))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._all("receive_update", [update_info] * len(self.actors))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_update", [self.version] * len(self.actors))

    def _all(self, method: str, arguments: Sequence[Any]) -> None:
        calls = [getattr(actor, method).remote(arg) for actor, arg in zip(self.actors, arguments, strict=True)]
        wait_for_all(numbered("rollout", calls), method, self.timeout_s)


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
            self.sent.add(name, tensor)
            yield name, tensor


class NcclSender:
    """The learner's end of the transfer; construct and use it on every learner rank."""

    def __init__(self, rank: LearnerRank, host: str, port: int, actors: Sequence[Any], timeout_s: float):
        """host, port: where the transfer group meets, free on the node of learner rank 0."""
        self.client = RolloutClient(actors, timeout_s)
        self.source = ShardedSource(rank)
        info = NCCLTrainerInitInfo(host, port, 1 + len(actors), rank=rank.rank)
        self.engine: TrainerWeightTransferEngine = WeightTransferTrainerFactory.trainer_init(
            info, client=self.client, source=self.source
        )

    def send(self, version: int) -> str:
        """Broadcast the current parameters as `version`; returns their digest when every rollout actor has them."""
        self.client.version = version
        self.engine.send_weights()
        return self.source.sent.hexdigest()
