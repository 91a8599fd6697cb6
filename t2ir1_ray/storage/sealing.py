"""Files that must be on the disk, and be known again: flushed and hashed."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
THREADS = 16


def sealed(file: Path) -> dict[str, int | str]:
    """{bytes, sha256} of a file that is on the disk when this returns."""
    flush(file)
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def flush(path: Path) -> None:
    """Of a file, or of a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def side_by_side(work: Callable[[Path], T], files: Sequence[Path]) -> list[T]:
    """`work` on every file, in threads: hashing lets go of the interpreter, and a disk likes several requests."""
    with ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(work, files))
