"""Policy versions from GPU to GPU: who is asked for what in which order, and what happens if one does not answer.

The two ends meet inside NCCL, where a partner that is missing is waited for for ever. So this process asks both of them
and waits for all at once: a death ends the wait, and so does the clock. What is stuck then is beyond saving: whoever
called ends the processes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from actors.calls import nobody, numbered, wait_for, wait_for_all
from t2ir1_ray.errors import RunError

PACKING = {"packed": True, "packed_buffer_size_bytes": 1 << 30, "packed_num_buffers": 2}
"""How tensors are put together on the way; both ends must do it in the same manner."""
ONCE = {"max_task_retries": 0}
"""An actor that was started again has nothing of an update under way: its death must be told, not its call repeated."""


class Transfer:
    """Learner rank 0 is rank 0 of the group, rollout actor i is rank 1 + i; all learner ranks gather what is sent."""

    def __init__(
        self, learners: Sequence[Any], rollouts: Sequence[Any], layout: Mapping[str, Any], look: Callable[[], None]
    ):
        self.learners, self.rollouts, self.layout, self.look = list(learners), list(rollouts), layout, look

    @classmethod
    def open(
        cls, learners: Sequence[Any], rollouts: Sequence[Any], timeout_s: float, look: Callable[[], None] = nobody
    ) -> Self:
        """Bring both ends together. look: see `calls.first_ready`. Raises RunError with the name of who stays away."""
        what, deadline = "open the weight transfer", time.monotonic() + timeout_s
        host, port = wait_for(learners[0].address.remote(True), "learner 0", what, timeout_s, look)
        layout = wait_for(learners[0].layout.remote(), "learner 0", what, timeout_s, look)
        place = (host, port, 1 + len(rollouts))
        transfer = cls(learners, rollouts, layout, look)
        transfer._all(
            what,
            deadline,
            learners=[each.join_transfer.options(**ONCE).remote(*place) for each in learners],
            rollouts=[each.join_transfer.options(**ONCE).remote(*place, 1 + i) for i, each in enumerate(rollouts)],
        )
        return transfer

    def send(self, version: int, timeout_s: float) -> str:
        """The learner's parameters, as `version`, to every rollout actor; returns their digest, confirmed by all.

        Raises RunError with the name of who died, did not answer in time, or took in other bytes.
        """
        deadline = time.monotonic() + timeout_s
        what = f"version {version}"
        self._all(
            f"prepare for {what}",
            deadline,
            rollouts=[rollout.start_update.options(**ONCE).remote() for rollout in self.rollouts],
        )
        digest, *_ = self._all(
            f"transfer {what}",
            deadline,
            learners=[learner.send.remote() for learner in self.learners],
            rollouts=[rollout.receive_update.options(**ONCE).remote(self.layout) for rollout in self.rollouts],
        )
        finished = [rollout.finish_update.options(**ONCE).remote(version) for rollout in self.rollouts]
        confirmed = self._all(f"load {what}", deadline, rollouts=finished)
        check_confirmed(numbered("rollout", confirmed), version, digest)
        return digest

    def _all(self, what: str, deadline: float, learners: Sequence[Any] = (), rollouts: Sequence[Any] = ()) -> list[Any]:
        calls = numbered("learner", learners) | numbered("rollout", rollouts)
        return wait_for_all(calls, what, max(1, math.ceil(deadline - time.monotonic())), self.look)


def check_confirmed(confirmed: Mapping[str, tuple[int, str]], version: int, digest: str) -> None:
    """Did every rollout actor take in what the learner sent? confirmed: (version, digest) by the actors' names."""
    for who, found in confirmed.items():
        if tuple(found) != (version, digest):
            raise RunError(f"{who}: took in weights {tuple(found)}, published were {(version, digest)}")
