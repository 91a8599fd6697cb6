"""The one rule for names of metrics, for every line that a run writes.

A name is made of parts, joined by `/`, of letters, digits and `_.-`; no name is a folder of another (`kl` and `kl/x`),
because a store may make paths of names and cannot have a file and a folder of one name. Names that come from data pass
through `records.names.part` first.
"""

import re
from collections.abc import Iterable

from t2ir1_ray.errors import RunError

PATTERN = re.compile(r"(?!(.*/)?\.{1,2}(/|$))[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
LONGEST = 250


class MetricNames:
    """All names of a run so far."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._inside: dict[str, str] = {}  # folder -> a name in it

    def check(self, names: Iterable[str]) -> None:
        """Raises RunError for a name that breaks the rule."""
        for name in names:
            if name in self._names:
                continue
            if len(name) > LONGEST or not PATTERN.fullmatch(name):
                rule = f"at most {LONGEST} letters, digits and _.- in parts joined by /"
                raise RunError(f"journal: a metric is called {name[:LONGEST]!r}: a name has {rule}")
            folders = [name[: slash.start()] for slash in re.finditer("/", name)]
            other = self._inside.get(name) or next((folder for folder in folders if folder in self._names), None)
            if other:
                raise RunError(f"journal: metrics are called {name} and {other}: one would be the other's folder")
            self._names.add(name)
            self._inside |= dict.fromkeys(folders, name)
