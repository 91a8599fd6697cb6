"""Experiment trackers beside TensorBoard, named in `journal.trackers`: wandb and mlflow (the extra `trackers`).

Neither is given a network address: wandb writes offline unless the environment variable WANDB_MODE says otherwise
(`wandb sync` uploads a run later), mlflow writes into the run folder unless MLFLOW_TRACKING_URI is set.

A run never waits for a tracker: each has a thread of its own and a queue of at most QUEUE items, and one that does not
keep up, because its server is silent, is left out with a line. TensorBoard and metrics.jsonl hold everything anyway.
"""

import importlib
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from t2ir1_ray.config.rules import leaves
from t2ir1_ray.errors import UserError, reason
from t2ir1_ray.records.names import part
from t2ir1_ray.storage import write_whole

EXPERIMENT = "t2ir1_ray"
QUEUE = 64
"""Items (steps, images, the end) that wait for a tracker; one more, and it is left out."""
OPEN_S = 5.0
"""How long a run waits at its start for what a tracker has against its settings; silence is no answer."""
CLOSE_S = 8.0
"""How long a run waits at its end for all trackers together."""
HTTP_S = 10
"""After which mlflow and wandb give up on a request, unless their own environment variables say otherwise."""


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
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", EXPERIMENT),
            name=run.name,
            id=identity,
            dir=str(run),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow" if resume_step else None,
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                x_disable_stats=True,
                init_timeout=HTTP_S,
                finish_timeout=CLOSE_S,
            ),
        )
        write_whole(run / "wandb.id", identity)
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
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(HTTP_S))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._mlflow = _module("mlflow")

    def open_run(self, run: Path, config: Mapping[str, Any], resume_step: int) -> None:
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if not store:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its alternative, sqlite, needs two more packages
            store = (run / "mlflow").absolute().as_uri()
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
            self._client.log_param(self._run, _param(key), str(value)[:6000])
        write_whole(run / "mlflow.id", self._run)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        entities = importlib.import_module("mlflow.entities")
        now = importlib.import_module("mlflow.utils.time").get_current_time_millis()
        values = [entities.Metric(key, value, now, step) for key, value in _finite(metrics).items()]
        self._client.log_batch(self._run, metrics=values)

    def images(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._client.log_image(self._run, Image.fromarray(pixels), f"{name}/step_{step:06d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._run)


TRACKERS = {"wandb": Wandb, "mlflow": Mlflow}


class Trackers:
    """All trackers of a run. One that fails later, because its server is gone, is reported and left out."""

    def __init__(
        self, names: Sequence[str], run: Path, config: Mapping[str, Any], resume_step: int, say: Callable[[str], None]
    ):
        """Raises UserError with one line if a tracker is unknown, not installed, or says within OPEN_S why it cannot
        start."""
        unknown = [name for name in names if name not in TRACKERS]
        if unknown:
            raise UserError(f"journal.trackers={unknown[0]}: must be one of {', '.join(TRACKERS)}")
        opening = run, _public(config), resume_step
        self._threads = [_Thread(name, TRACKERS[name](), opening, say) for name in dict.fromkeys(names)]
        deadline = time.monotonic() + OPEN_S
        for thread in self._threads:
            thread.await_opening(deadline)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        for thread in self._threads:
            thread.ask(lambda tracker: tracker.log(metrics, step))

    def images(self, name: str, pixels: np.ndarray, step: int) -> None:
        for thread in self._threads:
            thread.ask(lambda tracker: tracker.images(name, pixels, step))

    def close(self) -> None:
        """Hand over what is queued; returns after CLOSE_S at the latest."""
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.ask(lambda tracker: tracker.close(), last=True)
        for thread in self._threads:
            thread.await_end(deadline)


class _Thread:
    """One tracker, and the only thread that calls it."""

    def __init__(
        self, name: str, tracker: Tracker, opening: tuple[Path, Mapping[str, Any], int], say: Callable[[str], None]
    ):
        self.name, self._tracker, self._opening, self._say = name, tracker, opening, say
        self._work: queue.Queue[tuple[Callable[[Tracker], None], bool]] = queue.Queue(QUEUE)
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self._left_out = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def await_opening(self, deadline: float) -> None:
        """Raises UserError if it could not start. Silence until the deadline is told, and work is queued meanwhile."""
        if not self._opened.wait(max(0.0, deadline - time.monotonic())):
            self._say(f"{self.name} does not answer: the run goes on, its figures wait in a queue of {QUEUE}")
        elif self._failure:
            raise UserError(f"journal.trackers={self.name}: {self.name} does not start: {reason(self._failure)}")

    def ask(self, call: Callable[[Tracker], None], last: bool = False) -> None:
        """Queue a call. last: the thread ends behind it."""
        if self._failure:
            self._leave_out(reason(self._failure))
        if self._left_out:
            return
        try:
            self._work.put_nowait((call, last))
        except queue.Full:
            self._leave_out(f"its server has not answered for {QUEUE} calls")

    def await_end(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._leave_out(f"no end within {CLOSE_S:g} s, {self._work.qsize()} calls are lost")

    def _run(self) -> None:
        try:
            self._tracker.open_run(*self._opening)
        except Exception as error:  # of any library
            self._failure = error
        self._opened.set()
        last = self._failure is not None
        while not last and not self._left_out:
            call, last = self._work.get()
            try:
                call(self._tracker)
            except Exception as error:  # training matters more
                self._leave_out(reason(error))

    def _leave_out(self, why: str) -> None:
        """Say it once."""
        with self._lock:
            told, self._left_out = self._left_out, True
        if not told:
            self._say(f"{self.name} failed and gets no more figures: {why}")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"journal.trackers={name}: {name} is not installed: pip install '.[trackers]'") from None


def _known(run: Path, name: str, resume_step: int) -> str | None:
    """The tracker's id of a run that goes on."""
    file = run / f"{name}.id"
    return file.read_text() if resume_step and file.is_file() else None


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float) and key != "step"}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


def _param(key: str) -> str:
    """A dotted key as mlflow knows names; an expert's own options may be called anything."""
    return ".".join(part(piece) for piece in key.split("."))


def _public(node: Any) -> Any:
    """Without Ray's runtime environments, whose variables may be secrets."""
    if not isinstance(node, Mapping):
        return node
    return {key: _public(value) for key, value in node.items() if key != "runtime_env"}
