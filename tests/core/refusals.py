"""What every refusal must be: a UserError of one line, short enough to read."""

from collections.abc import Callable
from typing import Any

import pytest

from t2ir1_ray.errors import UserError
from tests import fuzz


def refused(action: Callable[[], Any], *words: str) -> str:
    with pytest.raises(UserError) as error:
        action()
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < fuzz.LINE_LIMIT
    for word in words:
        assert word in line
    return line
