"""Going on with a run that was interrupted: is it still the same run, and did someone ask it to stop."""

import hashlib
import json
import signal
import stat
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

from t2ir1_ray.checkpoints.folder import contents_digest
from t2ir1_ray.config import Config
from t2ir1_ray.config.resuming import Change, differences
from t2ir1_ray.errors import UserError
from t2ir1_ray.storage import write_whole

INPUTS = "inputs.json"
POLICY = "policy.path"
ROLLOUTS_S = 10
"""How long a run that was asked to end waits for steps ahead of the learner: spot instances leave it 30 s in all."""


def record_inputs(run: Path, config: Config) -> None:
    """Remember the contents of prompt files and policy: by their keys, for a later job may have them elsewhere."""
    write_whole(run / INPUTS, json.dumps(_inputs(config), indent=1) + "\n")


def check_unchanged(run: Path, stored: Config, config: Config, force: bool = False) -> None:
    """Raises UserError with every difference that keeps the run from going on: see the table in `config.resuming`.

    force: what the figures depend on may have changed, but not what a checkpoint's state is made of.
    """
    known, policy = _known(run, force), _policy(config)
    if policy and known.get(POLICY) == policy[POLICY]:  # the same checkpoint, wherever it lies
        stored = replace(stored, policy=replace(stored.policy, path=config.policy.path))
    found = differences(stored, config)
    if found[Change.FIXED]:
        raise UserError(
            f"--resume: the checkpoints of {run} are of another run ({'; '.join(found[Change.FIXED])}): undo it, "
            "or begin a new run"
        )
    if force:
        return
    changes, now = found[Change.FORCED], _inputs(config)
    files = _prompt_files(config) | ({POLICY: config.policy.path} if policy and POLICY in known else {})
    changes += [f"{key}: {p}: other contents than before" for key, p in files.items() if known.get(key) != now[key]]
    if changes:
        raise UserError(
            f"--resume: this is not the run that {run} holds ({'; '.join(changes)}): undo it, or add --force"
        )


def _known(run: Path, force: bool) -> dict[str, Any]:
    try:
        known = json.loads((run / INPUTS).read_bytes()) if (run / INPUTS).is_file() else {}
    except (OSError, ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        if force:
            return {}
        raise UserError(f"--resume: {run / INPUTS} is no JSON object: restore it, or add --force")
    return known


def _prompt_files(config: Config) -> dict[str, str]:
    files = {"data.prompts": config.data.prompts, "eval.prompts": config.eval.prompts}
    return {key: path for key, path in files.items() if path}


def _inputs(config: Config) -> dict[str, str]:
    """key of the configuration -> digest of the file or folder that it names"""
    try:
        for key, file in _prompt_files(config).items():
            if not stat.S_ISREG(Path(file).stat().st_mode):  # a device never ends
                raise UserError(f"{key}: {file} is no file: give one with prompts")
        found = {key: hashlib.sha256(Path(f).read_bytes()).hexdigest() for key, f in _prompt_files(config).items()}
    except OSError as error:
        raise UserError(f"data.prompts, eval.prompts: {error.filename}: {error.strerror}") from None
    return found | _policy(config)


def _policy(config: Config) -> dict[str, str]:
    """Its key and the digest of its folder; nothing for a hub id, or where it cannot be read, which loading says."""
    with suppress(OSError):
        if (folder := Path(config.policy.path)).is_dir():
            return {POLICY: contents_digest(folder)}
    return {}


class Termination:
    """SIGTERM as a request to save and end: what a spot instance gets before it is taken away, and a stopped Ray job.

    Until `defer` there is nothing to save, and the signal is that of Ctrl-C. Install it after `ray.init`, which
    has a handler of its own. Off the main thread, where Python allows no handlers, nobody asks.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._deferred = False

    def defer(self) -> None:
        """From now on the signal only sets `asked`."""
        self._deferred = True

    def __enter__(self) -> Self:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred:
            raise KeyboardInterrupt  # the only exception that Ray's waits let through
        self.asked.set()
