"""Paths as a run writes them down: in the words that lead to the same file from wherever the run goes on.

A job's working directory is a copy that Ray makes in a temporary folder, and the package, with all that it ships, may
lie in it. The next job, on this cluster or another one, has its copy elsewhere.
"""

from importlib import resources
from pathlib import Path
from typing import Any

SHIPPED = resources.files("t2ir1_ray") / "shapes" / "weights"


def submitted_copy() -> Path | None:
    """Ray's copy of the working directory that was submitted with a job, if this process runs in one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if folder.parent.name == "working_dir_files"), None)


def in_submitted_copy(folder: str | Path) -> str | None:
    """What is wrong with a folder that is to stay, if it lies in `submitted_copy`: Ray removes that behind the job."""
    copy, where = submitted_copy(), Path(folder).expanduser().absolute()
    if copy is None or not where.is_relative_to(copy):
        return None
    return "lies in Ray's temporary copy of the submitted folder: give an absolute path, on a disk that all nodes share"


def portable(value: Any) -> Any:
    """The value with every path in it that names a shipped file as `${shipped:name}`, and every path below a
    submitted working directory relative to it."""
    if isinstance(value, dict):
        return {key: portable(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [portable(child) for child in value]
    if not (isinstance(value, str) and value.startswith("/")):
        return value
    path, copy = Path(value), submitted_copy()
    if path.parent == Path(str(SHIPPED)):
        return f"${{shipped:{path.name}}}"
    return str(path.relative_to(Path.cwd())) if copy and path.is_relative_to(Path.cwd()) else value
