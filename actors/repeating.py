"""Calls of devices that have bad moments."""

import sys
from collections.abc import Callable
from typing import TypeVar

from t2ir1_ray.errors import UserError, reason

T = TypeVar("T")


def repeated(retries: int, call: Callable[[], T]) -> T:
    """What `call` returns; it must have no effects. What it raises, raises here after `retries` more tries.

    Ray could repeat it too (`retry_exceptions`), but has one count for that and for calls that are lost with a process:
    a lost node uses it up within seconds, see `spawning.REPEATED`.
    """
    for tries_left in range(retries, 0, -1):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # whatever a model, its library or its device has against an input
            print(f"warning: {reason(error)}: tried again, {tries_left} times at most", file=sys.stderr)
    return call()
