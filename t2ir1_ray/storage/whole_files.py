"""The one way in which this project writes a file that is to stay: beside its place, flushed to the disk, renamed.

Whoever reads sees the file before or the file after. A disk that is full or gone ends the command with one line.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t2ir1_ray.errors import RunError

PARTIAL = ".*.partial"
"""Pattern of what a process that was killed may leave beside its files."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields where to write; behind the block it becomes `path`.

    Raises RunError if the disk fails, and leaves `path` as it was.
    """
    aside = path.with_name(f".{secrets.token_hex(4)}.partial")  # as short as can be: `path` may have a long name
    with disk_failure(path):
        try:
            yield aside
            with aside.open("rb+") as written:
                os.fsync(written.fileno())
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def write_whole(path: Path, content: str | bytes) -> None:
    """`content` (text as UTF-8, line ends as they are) as the file `path`, in a folder that exists or is made."""
    with disk_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


class AppendedLines:
    """A file of lines, each on the disk or not there: a line that did not fit is taken back."""

    def __init__(self, path: Path):
        self._path = path
        with disk_failure(path):
            self._file = path.open("ab", buffering=0)

    def append(self, line: str) -> None:
        """Raises RunError if the disk fails; the lines before it stay."""
        end = os.fstat(self._file.fileno()).st_size
        with disk_failure(self._path):
            try:
                data = memoryview(f"{line}\n".encode())
                while data:
                    data = data[self._file.write(data) :]
                os.fsync(self._file.fileno())
            except OSError:
                with suppress(OSError):
                    self._file.truncate(end)
                raise

    def close(self) -> None:
        with suppress(OSError):  # every line is on the disk
            self._file.close()


def cache_folder() -> Path:
    """Where this user keeps what can be made again; it need not exist, nor be writable."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "t2ir1_ray"


@contextmanager
def disk_failure(path: Path) -> Iterator[None]:
    """What the operating system has against a file, as one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200] or type(error).__name__
        raise RunError(
            f"{str(path)[:300]}: {reason}: free the disk or choose another one; what was written before is whole"
        ) from None
