"""Experiment trackers beside TensorBoard, named in `journal.trackers`: wandb and mlflow (the extra `trackers`).

Neither is given a network address: wandb writes offline unless the environment variable WANDB_MODE says otherwise
(`wandb sync` uploads a run later), mlflow writes into the run folder unless MLFLOW_TRACKING_URI is set.
"""

import importlib
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from t2ir1_ray.config.rules import leaves
from t2ir1_ray.errors import UserError

EXPERIMENT = "t2ir1_ray"


class Tracker(Protocol):
    """Where a run's figures go. Keys are those of metrics.jsonl; steps never fall."""

    def open_run(self, run: Path, config: Mapping[str, Any], resume_step: int) -> None:
        """Open the run of this folder, or go on with it behind `resume_step` (0: it is new)."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Figures of a step. Those that are None or not finite are left out."""

    def images(self, name: str, pixels: np.ndarray, step: int) -> None:
        """pixels: (H, W, 3) uint8."""

    def close(self) -> None:
        """Flush everything; the tracker is of no use afterwards."""


class Wandb:
    """One wandb run per run folder, its files in RUN/wandb; a resumed one adds files of the same run."""

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = _module("wandb")

    def open_run(self, run: Path, config: Mapping[str, Any], resume_step: int) -> None:
        wandb = self._wandb
        identity = _known(run, "wandb", resume_step) or secrets.token_hex(4)
        with _door("wandb"):
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", EXPERIMENT),
                name=run.name,
                id=identity,
                dir=str(run),
                config=dict(config),
                mode=os.environ.get("WANDB_MODE", "offline"),
                resume="allow" if resume_step else None,
                settings=wandb.Settings(silent=True, console="off", save_code=False, x_disable_stats=True),
            )
        (run / "wandb.id").write_text(identity)
        self._run.define_metric("*", step_metric="step")  # wandb's own counter cannot go back to a checkpoint's step

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._run.log({**_finite(metrics), "step": step})

    def images(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Image(pixels), "step": step})

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """One mlflow run per run folder, in RUN/mlflow unless MLFLOW_TRACKING_URI names a store or server."""

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._mlflow = _module("mlflow")

    def open_run(self, run: Path, config: Mapping[str, Any], resume_step: int) -> None:
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if not store:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its alternative, sqlite, needs two more packages
            store = (run / "mlflow").absolute().as_uri()
        with _door("mlflow"):
            self._client = self._mlflow.MlflowClient(tracking_uri=store)
            known = _known(run, "mlflow", resume_step)
            if known:
                self._run = known
                self._client.update_run(known, status="RUNNING")
                return
            found = self._client.get_experiment_by_name(EXPERIMENT)
            experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
            self._run = self._client.create_run(experiment, run_name=run.name).info.run_id
            for key, value in leaves(config):
                self._client.log_param(self._run, _mlflow_name(key), str(value)[:6000])
        (run / "mlflow.id").write_text(self._run)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        entities = importlib.import_module("mlflow.entities")
        now = importlib.import_module("mlflow.utils.time").get_current_time_millis()
        values = [entities.Metric(_mlflow_name(key), value, now, step) for key, value in _finite(metrics).items()]
        self._client.log_batch(self._run, metrics=values)

    def images(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._client.log_image(self._run, Image.fromarray(pixels), f"{name}/step_{step:06d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._run)


TRACKERS = {"wandb": Wandb, "mlflow": Mlflow}


class Trackers:
    """All trackers of a run. One that fails later, because its server is gone, is reported and left out: TensorBoard
    and metrics.jsonl hold everything anyway."""

    def __init__(
        self, names: Sequence[str], run: Path, config: Mapping[str, Any], resume_step: int, say: Callable[[str], None]
    ):
        """Raises UserError with one line if a tracker is unknown, not installed, or cannot start."""
        unknown = [name for name in names if name not in TRACKERS]
        if unknown:
            raise UserError(f"journal.trackers={unknown[0]}: must be one of {', '.join(TRACKERS)}")
        self._say = say
        self._open: dict[str, Tracker] = {name: TRACKERS[name]() for name in names}
        for tracker in self._open.values():
            tracker.open_run(run, _public(config), resume_step)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._each(lambda tracker: tracker.log(metrics, step))

    def images(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._each(lambda tracker: tracker.images(name, pixels, step))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:  # of any library; training matters more
                del self._open[name]
                self._say(f"{name} failed and gets no more figures: {_reason(error)}")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"journal.trackers={name}: {name} is not installed: pip install '.[trackers]'") from None


@contextmanager
def _door(name: str) -> Iterator[None]:
    """What a tracker's own library raises when it cannot start, as one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"journal.trackers={name}: {name} does not start: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _known(run: Path, name: str, resume_step: int) -> str | None:
    """The tracker's id of a run that goes on."""
    file = run / f"{name}.id"
    return file.read_text() if resume_step and file.is_file() else None


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float) and key != "step"}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


def _mlflow_name(key: str) -> str:
    """mlflow knows letters, digits, and `_-. :/`."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in key)


def _public(node: Any) -> Any:
    """Without Ray's runtime environments, whose variables may be secrets."""
    if not isinstance(node, Mapping):
        return node
    return {key: _public(value) for key, value in node.items() if key != "runtime_env"}
