"""Calls that raise."""

import pytest

from actors.repeating import repeated
from t2ir1_ray.errors import UserError


def test_a_call_that_raised_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([RuntimeError("one\nof two"), RuntimeError("two"), "fine", "never asked for"])

    def call() -> str:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    assert repeated(2, call) == "fine"
    assert next(answers) == "never asked for"
    assert capsys.readouterr().err.splitlines() == [
        "warning: RuntimeError: one of two: tried again, 2 times at most",
        "warning: RuntimeError: two: tried again, 1 times at most",
    ]


@pytest.mark.parametrize(("error", "calls"), [(RuntimeError, 3), (UserError, 1)])
def test_the_last_error_is_the_caller_s(error: type[Exception], calls: int) -> None:
    """What a user has to mend does not mend itself."""
    made = []

    def call() -> None:
        made.append(None)
        raise error(f"call {len(made)}")

    with pytest.raises(error, match=f"call {calls}"):
        repeated(2, call)
    assert len(made) == calls
