"""What a process is told before it loads a model: its own GPU alone, and the same bits every time if that is wanted."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors import startup
from actors.placement import Role
from actors.spawning import actor_environment
from actors.startup import DETERMINISTIC, take_device
from t2ir1_ray.errors import UserError

NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"


def in_actor(monkeypatch: pytest.MonkeyPatch, given: int, seen: int) -> None:
    """This process as an actor that Ray has given so many GPUs, and torch as it sees the node."""
    context = SimpleNamespace(
        get_actor_id=lambda: "ab12",
        get_actor_name=lambda: "learner-1",
        get_accelerator_ids=lambda: {"GPU": [str(i) for i in range(given)]},
    )
    fake = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    monkeypatch.setitem(startup.sys.modules, "ray", fake)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)


@pytest.mark.parametrize(
    ("given", "seen", "noset", "line"),
    [
        (1, 8, "1", f"learner-1: sees 8 GPUs instead of its own 1: unset {NOSET} where Ray is started"),
        (1, 8, "", "unset CUDA_VISIBLE_DEVICES where Ray is started"),
        (0, 8, "", "sees 8 GPUs instead of its own 0"),
        (1, 0, "", "learner-1: has 1 GPU and torch sees none: run python -m t2ir1_ray.doctor on its node"),
    ],
)
def test_an_actor_that_sees_other_gpus_than_its_own_does_not_start(
    given: int, seen: int, noset: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_actor(monkeypatch, given, seen)
    monkeypatch.setenv(NOSET, noset)
    with pytest.raises(UserError, match=line) as refused:
        take_device()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_an_actor_that_sees_its_own_gpus_starts(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_actor(monkeypatch, gpus, gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert take_device() == ("cuda" if gpus else "cpu")


def test_outside_an_actor_anything_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert take_device() == "cpu"


@pytest.fixture
def switches() -> Iterator[Any]:
    yield lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize(("wanted", "found"), [("", (False, False)), ("error", (True, False)), ("warn", (True, True))])
def test_torch_is_deterministic_when_the_environment_says_so(
    wanted: str, found: tuple[bool, bool], switches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DETERMINISTIC, wanted)
    take_device()
    assert switches() == found


@pytest.mark.parametrize("gpus", [0, 0.25, 1])
def test_each_role_is_told_what_makes_it_deterministic(gpus: float) -> None:
    def told(name: str, wanted: bool) -> dict[str, str]:
        return actor_environment(Role(name, 1, 1, gpus), {"env_vars": {"MINE": "1"}}, wanted)["env_vars"]

    for name, mode in (("learner", "error"), ("reference", "warn"), ("expert-hps", "warn")):
        added = told(name, True).items() - told(name, False).items()
        assert dict(added) == {DETERMINISTIC: mode, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, name
    added = told("rollout", True).items() - told("rollout", False).items()
    assert dict(added) == ({"VLLM_BATCH_INVARIANT": "1"} if gpus else {})
