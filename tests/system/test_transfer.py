"""Policy versions from process to process, over gloo in place of NCCL: who is asked for what, and what if one dies.

The stand-ins have the methods of learner and rollout actors. Where NCCL would wait for ever, so do they.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from actors import calls
from actors.spawning import RESTARTED
from actors.transfer import Transfer
from t2ir1_ray.errors import RunError

pytestmark = pytest.mark.slow


def stand_ins() -> tuple[type, type]:
    """Defined here, so that their processes need not import this module."""

    class End:
        def __init__(self, fault: str = ""):
            self.asked: list[Any] = []
            self.fault = fault

        def meet(self, host: str, port: int, size: int, rank: int) -> None:
            import torch.distributed as dist

            self.asked.append("join")
            self.stumble("join")
            dist.init_process_group("gloo", init_method=f"tcp://{host}:{port}", world_size=size, rank=rank)

        def stumble(self, where: str) -> None:
            import os
            import time

            kind, _, place = self.fault.partition(" in ")
            if place != where:
                return
            if kind == "raises":
                raise ValueError("out of memory")
            if kind == "dies":
                os._exit(1)
            if kind == "hangs":
                time.sleep(3600)

        def history(self) -> list[Any]:
            return self.asked

        def broadcast(self, tensor: Any) -> Any:
            """As NCCL's: a partner that is lost is waited for."""
            import time

            import torch.distributed as dist

            try:
                dist.broadcast(tensor, 0)
            except RuntimeError:
                time.sleep(3600)
            return tensor

    class StandInLearner(End):
        def __init__(self, rank: int, fault: str = ""):
            super().__init__(fault)
            self.rank = rank
            self.version = 0

        def address(self, routable: bool) -> tuple[str, int]:
            import socket

            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                return probe.getsockname()

        def layout(self) -> dict[str, Any]:
            return {"names": ["a", "b"], "dtype_names": ["float32", "bfloat16"], "shapes": [[3, 5], [7]]}

        def join_transfer(self, host: str, port: int, size: int) -> None:
            if self.rank == 0:
                self.meet(host, port, size, 0)

        def send(self) -> str | None:
            import torch

            from actors.weights import Digest

            self.version += 1
            self.asked.append("send")
            self.stumble(f"version {self.version}")
            digest = Digest()
            state = {"a": torch.full((3, 5), float(self.version)), "b": torch.arange(7).bfloat16()}
            if self.rank:
                return None
            for name, tensor in state.items():
                digest.add(name, self.broadcast(tensor))
            return digest.hexdigest()

    class StandInRollout(End):
        def join_transfer(self, host: str, port: int, size: int, rank: int) -> None:
            self.rank, self.version = rank, 0
            self.meet(host, port, size, rank)

        def start_update(self) -> None:
            from actors.weights import Digest

            self.version += 1
            self.asked.append("start")
            self.digest = Digest()

        def receive_update(self, layout: dict[str, Any]) -> None:
            import torch

            self.asked.append("receive")
            self.stumble(f"version {self.version}")
            for name, dtype, shape in zip(*layout.values(), strict=True):
                tensor = self.broadcast(torch.empty(shape, dtype=getattr(torch, dtype)))
                if self.fault == f"forges in version {self.version}":
                    tensor[0] = 9.0
                self.digest.add(name, tensor)

        def finish_update(self, version: int) -> tuple[int, str]:
            self.asked.append(f"finish {version}")
            return version, self.digest.hexdigest()

    return StandInLearner, StandInRollout


@pytest.fixture
def ends(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[list[Any], list[Any]]]]:
    """`ends(learner_fault, rollout_fault)`: learner ranks and two rollout actors; the faults are of rank 0 and of
    actor 1. Rollout actors start again when they die, as in a run."""
    monkeypatch.setattr(calls, "PARTNERS_S", 1.0)
    made: list[Any] = []

    def make(learner_fault: str = "", rollout_fault: str = "", ranks: int = 1) -> tuple[list[Any], list[Any]]:
        learner, rollout = (ray.remote(kind) for kind in stand_ins())
        learners = [learner.options(num_cpus=0).remote(rank, learner_fault) for rank in range(ranks)]
        rollouts = [rollout.options(num_cpus=0, **RESTARTED).remote(rollout_fault * index) for index in range(2)]
        made.extend((*learners, *rollouts))
        return learners, rollouts

    yield make
    for actor in made:
        ray.kill(actor)


def test_every_version_arrives_and_is_confirmed(ends: Callable) -> None:
    learners, rollouts = ends(ranks=2)
    transfer = Transfer.open(learners, rollouts, 60)
    assert transfer.send(0, 60) != transfer.send(1, 60)
    one = ["start", "receive", "finish 0", "start", "receive", "finish 1"]
    assert [ray.get(actor.history.remote()) for actor in rollouts] == [["join", *one]] * 2
    assert [ray.get(actor.history.remote()) for actor in learners] == [["join", "send", "send"], ["send", "send"]]


@pytest.mark.parametrize(
    ("learner_fault", "rollout_fault", "said"),
    [
        ("", "dies in version 2", "rollout 1: transfer version 7 failed: The actor .* unavailable"),
        ("raises in version 2", "", "learner 0: transfer version 7 failed: ValueError: out of memory$"),
        ("", "forges in version 2", r"rollout 1: took in weights \(7, '\w+'\), published were \(7, '\w+'\)$"),
    ],
    ids=["a rollout actor dies", "the learner raises", "a rollout actor takes in other bytes"],
)
def test_a_fault_is_named_while_the_others_wait_for_ever(
    learner_fault: str, rollout_fault: str, said: str, ends: Callable
) -> None:
    transfer = Transfer.open(*ends(learner_fault, rollout_fault), timeout_s=60)
    transfer.send(6, 60)
    begin = time.monotonic()
    with pytest.raises(RunError, match=f"^{said}") as error:
        transfer.send(7, 600)
    assert "\n" not in str(error.value)
    assert time.monotonic() - begin < 20


def test_who_may_hang_is_named_when_the_time_is_up(ends: Callable) -> None:
    transfer = Transfer.open(*ends(rollout_fault="hangs in version 1"), timeout_s=60)
    said = r"^learner 0, rollout 0, rollout 1: no answer to transfer version 0 within 3 s \(waited since"
    with pytest.raises(RunError, match=said):
        transfer.send(0, timeout_s=3)


def test_a_group_that_does_not_meet_is_told(ends: Callable) -> None:
    begin = time.monotonic()
    with pytest.raises(RunError, match="^rollout 1: open the weight transfer failed: The actor .* unavailable"):
        Transfer.open(*ends(rollout_fault="dies in join"), timeout_s=600)
    assert time.monotonic() - begin < 20
