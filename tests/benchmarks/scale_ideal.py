"""How long a run takes at best: an event simulation of its calls, each as long as it was drawn, with nothing between.

What waits for what is as in `t2ir1_ray.trainer` and `t2ir1_ray.loop.collector`: blocks of prompts go to the rollout
actor that holds the fewest, two at most; a block's groups are there when it ends and are scored by every expert and the
reference, whose actors have queues; learner ranks wait for one another; rollout actors take a version in together.
"""

import hashlib
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

Blocks = Sequence[Sequence[str]]
"""Prompt ids of one step, by rollout call."""
Seconds = Callable[..., float]
"""(kind of call, what makes the call one of its own) -> how long it takes: `Durations.of`."""


@dataclass(frozen=True)
class Durations:
    """Seconds of calls, log-normal around the means of their kinds: functions of the arguments only, in any process.

    means: by kind; spread: standard deviation over mean; speed: by what every duration is divided.
    """

    means: Mapping[str, float]
    spread: float = 0.0
    seed: int = 0
    speed: float = 1.0

    def of(self, kind: str, *which: object) -> float:
        """which: what makes the call one of its own, such as step and prompt."""
        sigma = math.sqrt(math.log1p(self.spread**2))
        text = "/".join(map(str, (self.seed, kind, *which)))
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())
        normal = NormalDist().inv_cdf((number + 0.5) / 2**48)
        return self.means[kind] / self.speed * math.exp(sigma * normal - sigma**2 / 2)


@dataclass(frozen=True)
class Run:
    """steps, and how many of them are collected ahead of the learner; actors and ranks; scorers: actors of everything
    that scores a group, by kind of call; blocks: of a step (1, 2, ...)."""

    steps: int
    ahead: int
    actors: int
    ranks: int
    scorers: Mapping[str, int]
    blocks: Callable[[int], Blocks]


class Step(NamedTuple):
    """Seconds of a step's phases, and since the beginning until it is over. score: from the last image to the last
    score; load: until every rollout actor holds the new version."""

    rollout: float
    score: float
    learn: float
    publish: float
    load: float
    end: float


class Queue:
    """Equal actors with a queue each. A call goes to the first one that holds the fewest."""

    def __init__(self, actors: int):
        self._ends: list[list[float]] = [[] for _ in range(actors)]

    def call(self, now: float, seconds: float) -> float:
        """When a call ends that is made now. Calls must be made in the order of time."""
        self._ends = [[end for end in ends if end > now] for ends in self._ends]
        ends = min(self._ends, key=len)
        ends.append((ends[-1] if ends else now) + seconds)
        return ends[-1]


def simulate(run: Run, seconds: Seconds) -> list[Step]:
    """Every step, from the moment in which all actors are up and version 0 is asked for.

    Kinds of calls: load (version, actor), rollout (step, first prompt), what scores (step, prompt), learner (step,
    rank), publish (version).
    """
    scorers = {kind: Queue(count) for kind, count in run.scorers.items()}
    collected: dict[int, tuple[float, float, float]] = {}  # step -> begin, last image, last score
    learner = seconds("publish", 0)
    load = _load(run, seconds, 0)
    rollouts = learner + load  # when the rollout side has done all that it was asked for
    for step in range(1, min(run.ahead, run.steps) + 1):
        collected[step] = _collect(run, seconds, step, rollouts, scorers)
        rollouts = collected[step][1]
    found = []
    for step in range(1, run.steps + 1):
        if step + run.ahead <= run.steps:
            collected[step + run.ahead] = _collect(run, seconds, step + run.ahead, max(rollouts, learner), scorers)
            rollouts = collected[step + run.ahead][1]
        begin, imaged, scored = collected.pop(step)
        learn = max(seconds("learner", step, rank) for rank in range(run.ranks))
        publish, load = seconds("publish", step), _load(run, seconds, step)
        learner = max(learner, scored) + learn + publish
        rollouts = max(rollouts, learner) + load
        if not run.ahead:
            learner = rollouts
        found.append(Step(imaged - begin, scored - imaged, learn, publish, load, learner))
    return found


def _load(run: Run, seconds: Seconds, version: int) -> float:
    return max(seconds("load", version, actor) for actor in range(run.actors))


def _collect(
    run: Run, seconds: Seconds, step: int, begin: float, scorers: Mapping[str, Queue]
) -> tuple[float, float, float]:
    """(begin, last image, last score) of a step whose prompts are there at `begin`, when all rollout actors are free;
    scorers may still be at work on the step before it."""
    rollouts = Queue(run.actors)
    waiting = list(reversed(list(enumerate(run.blocks(step)))))
    running: list[tuple[float, int, Sequence[str]]] = []
    now = scored = begin
    while waiting or running:
        while waiting and len(running) < 2 * run.actors:
            number, block = waiting.pop()
            end = rollouts.call(now, seconds("rollout", step, block[0]))
            heapq.heappush(running, (end, number, block))
        now, _, block = heapq.heappop(running)
        for prompt in block:
            for kind, queue in scorers.items():
                scored = max(scored, queue.call(now, seconds(kind, step, prompt)))
    return begin, now, max(now, scored)
