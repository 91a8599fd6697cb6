"""Checkpoints of a run: `checkpoints/step_<n>/` is whole or absent.

Each is a policy that plain transformers loads, with DeepSpeed's state of the learner in `learner/`, what an async run
has collected ahead in `in_flight/`, the run's position in `state.json` and a manifest of sizes and hashes. It is
written aside, flushed to disk and renamed. Prompts, sampling and evaluation are functions of the step, so that nothing
else is needed to go on exactly.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2ir1_ray.errors import RunError
from t2ir1_ray.storage.sealing import flush, sealed, sha256, side_by_side

MANIFEST = "manifest.json"
STATE = "state.json"
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a damaged manifest or state raises."""


@dataclass(frozen=True)
class Snapshot:
    """A whole checkpoint, verified when it was found."""

    folder: Path
    step: int
    ranks: int  # learner ranks that wrote it
    accuracy: float | None  # held-out, if it was measured at this step


class Snapshots:
    """The `checkpoints` folder of a run."""

    def __init__(self, root: Path, keep_last: int):
        """keep_last: newest checkpoints that stay, besides the one with the best held-out accuracy; 0: all stay."""
        self.root, self.keep_last = root, keep_last

    def create(self, step: int, ranks: int, accuracy: float | None, write: Callable[[Path], Sequence[str]]) -> Path:
        """Make the checkpoint of a step. write: fills the folder it is given and returns the files, as paths inside it,
        without which it is none. Raises RunError if one is not there or the disk fails.
        """
        final = self._folder(step)
        staging = final.with_name(f".{final.name}.partial")
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            required = write(staging)
            (staging / STATE).write_text(json.dumps({"step": step, "ranks": ranks, "accuracy": accuracy}) + "\n")
            files = sorted(file for file in staging.rglob("*") if file.is_file())
            names = [str(file.relative_to(staging)) for file in files]
            manifest = dict(zip(names, side_by_side(sealed, files), strict=True))
            missing = sorted(set(required) - manifest.keys())
            if missing:
                raise OSError(f"{missing[0]} was written and is not there")
            (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            for path in [staging / MANIFEST, *(p for p in staging.rglob("*") if p.is_dir()), staging]:
                flush(path)
            staging.rename(final)
            flush(self.root)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            reason = error.strerror or str(error)
            raise RunError(f"checkpoint {final}: {reason}: the checkpoints before it are whole") from None
        self._prune()
        return final

    def newest(self, say: Callable[[str], None], at_most: int) -> Snapshot | None:
        """The newest checkpoint up to a step that is what its manifest says; `say` is told about every other one."""
        last = self._folder(at_most).name
        for folder in reversed([folder for folder in self._folders() if folder.name <= last]):
            fault = _fault(folder)
            if fault is None:
                return _read(folder)
            say(f"warning: checkpoint {folder} is not whole ({fault}): trying the one before it")
        return None

    def forget_after(self, step: int) -> None:
        """Remove what a run that goes on from `step` will make again, and what was never finished."""
        for folder in self.root.glob(".step_*.partial"):
            shutil.rmtree(folder)
        for folder in self._folders():
            if folder.name > self._folder(step).name:
                shutil.rmtree(folder)

    def _folder(self, step: int) -> Path:
        return self.root.resolve() / f"step_{step:06d}"

    def _folders(self) -> list[Path]:
        """Every checkpoint, by step."""
        return sorted(f for f in self.root.glob("step_*") if re.fullmatch(r"step_\d{6}", f.name) and f.is_dir())

    def _prune(self) -> None:
        if not self.keep_last:
            return
        found = [_read(folder) for folder in self._folders() if _whole(folder)]
        measured = [snapshot for snapshot in found if snapshot.accuracy is not None]
        best = max(measured, key=lambda snapshot: snapshot.accuracy, default=None)
        for snapshot in found[: -self.keep_last]:
            if snapshot != best:
                shutil.rmtree(snapshot.folder)


def _read(folder: Path) -> Snapshot:
    """Raises ValueError if the state is not one that `create` writes for this folder."""
    state = json.loads((folder / STATE).read_text())
    step, ranks, accuracy = state["step"], state["ranks"], state["accuracy"]
    if type(step) is not int or folder.name != f"step_{step:06d}" or type(ranks) is not int or ranks < 1:
        raise ValueError(f"{STATE} is not of this checkpoint")
    if accuracy is not None and not (isinstance(accuracy, int | float) and math.isfinite(accuracy)):
        raise ValueError(f"{STATE}: accuracy is {accuracy!r:.80}")
    return Snapshot(folder, step, ranks, accuracy)


def _whole(folder: Path) -> bool:
    """Whether the state can be read, at no cost; what `_fault` finds besides is found when a run goes on."""
    try:
        return bool(_read(folder))
    except UNREADABLE:
        return False


def _fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None if every file is there, as long and as it was."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if STATE not in manifest:
            return f"{MANIFEST} does not name {STATE}"
        for name, entry in manifest.items():
            file = folder / name
            if ".." in Path(name).parts or Path(name).is_absolute() or not file.is_file():
                return f"{name!r:.200} is no file of it"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        hashes = side_by_side(sha256, [folder / name for name in manifest])
        for (name, entry), found in zip(manifest.items(), hashes, strict=True):
            if found != entry["sha256"]:
                return f"{name} has other contents than were written"
        _read(folder)
    except UNREADABLE as error:
        return f"{type(error).__name__}: {error!s:.200}"
    return None
