"""The two ways in which a command of this project ends badly, each with one line and its exit code."""

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real

LONGEST = 400
"""Characters of one exception in a line: its beginning and its end."""
_LINKS = {
    "\nThe above exception was the direct cause of the following exception:\n": "because of",
    "\nDuring handling of the above exception, another exception occurred:\n": "after",
}


class UserError(Exception):
    """Bad configuration, data, checkpoint or resources. One line that names field, value and mend; exit code 2."""


class RunError(Exception):
    """A run that could not go on (a dead process, a timeout, a non-finite reward). One line, exit code 1."""


def check_finite(figures: Mapping[str, object], who: str) -> None:
    """Raises RunError with the names of the figures that are NaN or infinite. What has no value is None or left out."""
    bad = [f"{name}={v}" for name, v in figures.items() if isinstance(v, Real) and not math.isfinite(v)]
    if bad:
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
        raise RunError(f"{who}: not finite: {', '.join(bad[:4])}{more}")


def reason(error: BaseException) -> str:
    """One line: class and message of an exception, and of the innermost one of the chain that led to it."""
    last, link = error, ""
    while inner := last.__cause__ or (None if last.__suppress_context__ else last.__context__):
        link = "because of" if last.__cause__ else "after"
        last = inner
    return _line([_named(error), *([link, _named(last)] if last is not error else [])])


def reason_in(traceback: str) -> str | None:
    """The same from the text of a traceback, of another process; None if it holds none.

    Python prints the innermost exception first. Behind the last frame (`  File ...` and deeper lines) the exception
    begins with the first line that is not indented; its message may be of several lines.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", traceback)
    parts = re.split("(" + "|".join(map(re.escape, _LINKS)) + ")", text)
    said = [found for found in map(_exception_in, parts[::2]) if found]
    if not said:
        return None
    return _line([said[-1], *([_LINKS[parts[1]], said[0]] if len(said) > 1 else [])])


def _exception_in(section: str) -> str | None:
    lines = section.splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    behind = lines[frames[-1] + 1 :] if frames else []
    first = next((number for number, line in enumerate(behind) if line[:1].strip()), None)
    return None if first is None else "\n".join(behind[first:]).rpartition("t2ir1_ray.errors.")[2]


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__


def _line(parts: Sequence[str]) -> str:
    return " ".join(map(shortened, parts))


def shortened(text: str) -> str:
    """One printable line of at most LONGEST characters and dots in its middle."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
