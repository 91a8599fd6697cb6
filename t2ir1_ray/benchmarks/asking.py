"""The processes that answer questions about images: the checkpoint as often as there is room for it, on Ray."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import ray

from actors.calls import wait_for
from actors.startup import take_device, uncollected
from t2ir1_ray.benchmarks.devices import await_start, policy_role, reserve, start
from t2ir1_ray.benchmarks.pope import Asked
from t2ir1_ray.config import Config, PolicyConfig

AHEAD = 2
"""Calls that an actor holds: one at work, one waiting."""


class AnswerActor:
    """An `Answerer` that other processes ask; keeps no state between calls, so a call can be repeated anywhere."""

    def __init__(self, policy: PolicyConfig):
        with uncollected():
            from t2ir1_ray.janus.answerer import Answerer
        self.answerer = Answerer(policy, take_device())

    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return self.answerer.answer(images, questions)


class Answerers:
    """All that answer. Use as a context: leaving it ends the actors."""

    def __init__(self, config: Config, actors: int | None):
        """actors: how many; None: one for every GPU, on CPUs what the configuration says.

        Raises UserError if the cluster or the checkpoint does not do.
        """
        self.timeout = config.cluster.call_timeout_s
        role = policy_role("answerer", config, actors)
        self.placement = reserve([role], config.cluster.place_timeout_s)
        try:
            self.pool = start(self.placement, AnswerActor, role, (config.policy,))
            await_start(self.pool, config.cluster.start_timeout_s)
        except BaseException:
            self.placement.release()
            raise

    def answer(self, batches: Sequence[Sequence[Asked]]) -> Iterator[list[str]]:
        """What is said to each question of each batch, in order; images are read as their batch comes up."""
        running: deque[tuple[Any, str]] = deque()
        for batch in batches:
            if len(running) == AHEAD * len(self.pool.actors):
                yield self._result(*running.popleft())
            call = self.pool.call("answer", [asked.pixels() for asked in batch], [asked.text for asked in batch])
            running.append((call, f"question {batch[0].prompt_id}"))
        while running:
            yield self._result(*running.popleft())

    def _result(self, call: Any, what: str) -> list[str]:
        said = wait_for(call, self.pool.who(call), what, self.timeout)
        self.pool.done(call)
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.pool.actors:
            ray.kill(actor)
        self.placement.release()
