"""How busy actors are, as their caller sees it."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from actors.usage import Usage


def test_calls_side_by_side_count_once_as_work_and_wait_behind_each_other() -> None:
    clock = SimpleNamespace(now=0.0)
    usage = Usage(lambda: clock.now)
    usage.begin("rollout-0")  # 0 to 4
    clock.now = 1.0
    usage.begin("rollout-0")  # 1 to 3, behind the first
    usage.begin("rollout-1")  # 1 to the end
    clock.now = 3.0
    usage.end("rollout-0")
    clock.now = 4.0
    usage.end("rollout-0")
    clock.now = 8.0
    assert usage.take() == pytest.approx(
        {"usage/busy/rollout-0": 4 / 8, "usage/busy/rollout-1": 7 / 8, "usage/queue/rollout": 2 / 8}
    )
    clock.now = 10.0
    usage.end("rollout-1")
    clock.now = 12.0
    assert usage.take() == pytest.approx(
        {"usage/busy/rollout-0": 0.0, "usage/busy/rollout-1": 2 / 4, "usage/queue/rollout": 0.0}
    )


def test_a_call_ends_when_its_answer_is_there_and_also_when_it_fails() -> None:
    clock = SimpleNamespace(now=0.0)
    usage = Usage(lambda: clock.now)
    answers = [Future(), Future()]
    for answer in answers:
        usage.follow("expert-own-one-0", SimpleNamespace(future=lambda answer=answer: answer))
    clock.now = 1.0
    answers[0].set_result(None)
    clock.now = 2.0
    answers[1].set_exception(RuntimeError())
    clock.now = 4.0
    assert usage.take() == {"usage/busy/expert-own-one-0": 0.5, "usage/queue/expert-own-one": 0.25}
