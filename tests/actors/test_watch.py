"""Looking after actors: what is said of one that is down, and when the waiting ends."""

import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors import watch
from actors.watch import Watch
from t2ir1_ray.errors import RunError


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Ray's tables and the clock, to be set by the test: `state` of the one actor, `alive` of its node, `now`."""
    tables = SimpleNamespace(state="ALIVE", alive=True, now=1000.0, restarts=0)

    def entries(actors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        address = {"NodeID": "n1", "IPAddress": "10.0.0.7"}
        return {who: {"State": tables.state, "Address": address, "NumRestarts": tables.restarts} for who in actors}

    monkeypatch.setattr(watch, "table_entries", entries)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "n1", "Alive": tables.alive}])
    monkeypatch.setattr(time, "monotonic", lambda: tables.now)
    monkeypatch.setattr(time, "strftime", lambda _: "12:00:00")
    return tables


@pytest.fixture
def watched(table: SimpleNamespace) -> tuple[Callable[[float], None], list[str]]:
    """(look after so many seconds more, what was said)"""
    said: list[str] = []
    one = Watch({"rollout 1": object()}, 300, 2, said.append)

    def look(seconds: float) -> None:
        table.now += seconds
        one.look()

    look(0)
    look.watch = one
    return look, said


def test_an_actor_that_comes_back_is_told_twice(table: SimpleNamespace, watched: Any) -> None:
    look, said = watched
    table.state = "RESTARTING"
    look(2)
    table.alive = False  # its process is noticed before its node is
    look(20)
    look(270)
    assert look.watch.down == ["rollout 1"]
    table.state = "ALIVE"
    look(5)
    look(5)
    assert said == [
        "rollout 1: RESTARTING, since 12:00:00: it is waited for, at most 300 s",
        "rollout 1: RESTARTING because its node 10.0.0.7 is lost, since 12:00:00: it is waited for, at most 300 s",
        "rollout 1: is up again, on node 10.0.0.7, after 295 s",
    ]
    assert look.watch.down == []


def test_one_that_does_not_come_back_ends_the_run_in_one_line(table: SimpleNamespace, watched: Any) -> None:
    look, said = watched
    table.state, table.alive = "RESTARTING", False
    look(2)
    look(299)
    with pytest.raises(RunError) as error:
        look(2)
    assert str(error.value) == (
        "rollout 1: RESTARTING because its node 10.0.0.7 is lost, since 12:00:00, for longer than "
        "cluster.node_timeout_s=300: bring its node back, or another one with room for it"
    )


def test_a_second_loss_is_counted_from_its_own_beginning(table: SimpleNamespace, watched: Any) -> None:
    """Nobody has looked while the actor lived in between: all waits were short."""
    look, said = watched
    table.state, table.restarts = "RESTARTING", 1
    look(2)
    table.restarts = 2
    look(1000)
    assert len(said) == 2
    assert look.watch.restarts == {"rollout 1": 2}
    look(299)
    with pytest.raises(RunError, match="for longer than"):
        look(2)


def test_one_may_die_now_and_then_but_not_again_and_again(table: SimpleNamespace, watched: Any) -> None:
    """Twice in each of some steps; then three times in one."""
    look, said = watched
    for restarts in (2, 4, 6):
        table.restarts = restarts
        look(1)
        look.watch.end_step()
    table.restarts = 9
    with pytest.raises(RunError) as error:
        look(1)
    assert str(error.value) == (
        "rollout 1: died 3 times before a step was done, more often than reward.retries=2 allows: see its log in the "
        "dashboard, and dmesg on its node"
    )


def test_one_that_is_dead_is_not_waited_for(table: SimpleNamespace, watched: Any) -> None:
    look, said = watched
    table.state = "RESTARTING"
    look(100)
    said.clear()
    table.state = "DEAD"  # it was up in between, and nobody looked
    look(2)
    look(9)
    with pytest.raises(RunError, match=r"^rollout 1: DEAD, since 12:00:00, and is not started again$"):
        look(2)
    assert said == []


def test_one_that_starts_for_the_first_time_is_not_down(table: SimpleNamespace, watched: Any) -> None:
    look, said = watched
    table.state = "PENDING_CREATION"
    look(1000)
    look(1000)
    assert said == []
