"""Files that another process writes, looked at again and again: only what is new in them is read.

A file is opened for every look, because a network file system answers from its memory until then.
"""

import os
from pathlib import Path
from typing import BinaryIO

NOTHING = (0, 0, 0)


class Tail:
    """A file to which lines are appended."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = 0
        """Whole lines that were read."""
        self._place, self._last, self._seen = 0, b"", NOTHING

    def read(self) -> tuple[bool, list[bytes]]:
        """(whether what was read before is void, because the file was replaced or cut; the new whole lines)."""
        try:
            if not self.path.is_file():
                return self._forget(), []
            with self.path.open("rb") as file:
                seen = _sign(file)
                if seen == self._seen:
                    return False, []
                file.seek(self._place - len(self._last))
                same = seen[0] == self._seen[0] and file.read(len(self._last)) == self._last
                anew = False if same else self._forget()
                file.seek(self._place)
                fresh = file.readlines()
        except OSError:  # a file server that is away: nothing is new
            return False, []
        if fresh and not fresh[-1].endswith(b"\n"):
            fresh.pop()  # it is still being written, or was torn
        self._seen = seen
        self._place += sum(map(len, fresh))
        self._last = fresh[-1] if fresh else self._last
        self.lines += len(fresh)
        return anew, fresh

    def _forget(self) -> bool:
        """Begin at the beginning; returns whether anything had been read."""
        void = self._place > 0
        self._place, self._last, self._seen, self.lines = 0, b"", NOTHING, 0
        return void


class Whole:
    """A small file that is replaced as a whole. `content`: as it was at the last look; empty without a file."""

    def __init__(self, path: Path):
        self.path = path
        self.content = b""
        self._seen = NOTHING

    def changed(self) -> bool:
        """Whether the file was made, replaced or removed since the look before."""
        before = self._seen
        try:
            self._seen = NOTHING
            if self.path.is_file():
                with self.path.open("rb") as file:
                    self._seen = _sign(file)
                    self.content = self.content if self._seen == before else file.read()
        except OSError:  # it is removed in this moment, or the file server is away
            self._seen = before
        self.content = b"" if self._seen == NOTHING else self.content
        return self._seen != before


def _sign(file: BinaryIO) -> tuple[int, int, int]:
    """Changes whenever the file does."""
    stat = os.fstat(file.fileno())
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
