"""Why something failed reaches the one line that a person sees, from whatever depth."""

import traceback

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from actors.calls import explain
from actors.connect import connect, joined_address
from t2ir1_ray import config
from t2ir1_ray.errors import LONGEST, RunError, UserError, reason, reason_in


class Refused(Exception):
    """As pydantic's: a message of several lines, indented ones among them."""


def chained() -> None:
    try:
        raise OSError(28, "CUDA driver version is insufficient\nfor this runtime")
    except OSError as error:
        raise RuntimeError("Engine core initialization failed. See above.") from error


def refuse() -> None:
    raise Refused("1 validation error for Model\n  Value error, max_model_len (9) is too large\n    [type=x]")


def handled() -> None:
    try:
        {}["missing"]
    except KeyError:
        refuse()


def hidden() -> None:
    try:
        {}["missing"]
    except KeyError:
        raise ValueError("nothing else matters") from None


def user_error() -> None:
    raise UserError("policy.path: x: give another one")


def run_error() -> None:
    raise RunError("disk is full")


def long() -> None:
    raise MemoryError(f"begin {'x' * 5000} end")


SAID = {
    chained: (
        "RuntimeError: Engine core",
        "because of OSError: [Errno 28] CUDA driver version is insufficient for this",
    ),
    handled: ("Refused: 1 validation error for Model Value error, max_model_len (9)", "after KeyError: 'missing'"),
    hidden: ("ValueError: nothing else matters",),
    long: ("MemoryError: begin", "end"),
}


def caught(function) -> tuple[Exception, str]:
    try:
        function()
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return error, f"\x1b[36mray::RolloutActor.__init__()\x1b[39m (pid=7, ip=127.0.0.1)\n{text}"
    raise AssertionError


@pytest.mark.parametrize("function", SAID)
def test_an_exception_and_its_printed_traceback_say_the_same(function) -> None:
    error, text = caught(function)
    for line in (reason(error), reason_in(text).replace(f"{__name__}.", "")):
        assert "\n" not in line
        assert len(line) < 2 * LONGEST + 50
        for words in SAID[function]:
            assert words in line
    assert "missing" not in reason(caught(hidden)[0])


@pytest.mark.parametrize("function", SAID)
@pytest.mark.parametrize("in_constructor", [True, False])
def test_calls_and_constructors_of_actors_tell_their_cause(function, in_constructor: bool) -> None:
    error, text = caught(function)
    failed = RayTaskError("__init__", text, error)
    line = str(explain(ActorDiedError(failed) if in_constructor else failed, "rollout 0", "start"))
    assert line.startswith("rollout 0: start failed: ")
    for words in SAID[function]:
        assert words in line.replace(f"{__name__}.", "")


@pytest.mark.parametrize("in_constructor", [True, False])
def test_what_an_actor_refuses_stays_what_it_is(in_constructor: bool) -> None:
    for function, kind, line in (
        (user_error, UserError, "policy.path: x: give another one"),
        (run_error, RunError, "learner 1: disk is full"),
    ):
        error, text = caught(function)
        failed = RayTaskError("f", text, error)
        told = explain(ActorDiedError(failed) if in_constructor else failed, "learner 1", "step")
        assert (type(told), str(told)) == (kind, line)


def test_a_lost_process_tells_how_it_ended() -> None:
    error = ActorDiedError()
    error.error_msg = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: LearnerActor\n\tpid: 7\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "killed by the memory monitor"
    )
    line = str(explain(error, "learner 0", "step"))
    assert line.startswith("learner 0: died during step (The actor died unexpectedly")
    assert "killed by the memory monitor" in line
    assert "class_name" not in line


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://head:8265", "ray://[::1]:10001"])
def test_addresses_that_give_no_driver_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cluster.address=.*give host:port of the head"):
        joined_address(config.ClusterConfig(address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=r"RAY_ADDRESS=.*give host:port of the head"):
        connect(config.ClusterConfig())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /a"), "RAY_TMPDIR"),
        (Exception("The current node timed out during startup."), "Exception: The current node timed out"),
        (AssertionError(), "AssertionError"),
        (PermissionError(13, "Permission denied", "/tmp/ray"), "Permission denied"),
    ],
)
def test_whatever_ray_raises_at_its_start_is_one_line(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have a cluster in this process
    with pytest.raises(UserError, match=r"^cluster.address: a local cluster does not start: [^\n]*$") as told:
        connect(config.ClusterConfig())
    assert words in str(told.value)
