"""Trackers run for real in their offline modes: nothing leaves the machine, everything lands in the run folder."""

import importlib.util
import socket
from pathlib import Path

import numpy as np
import pytest

from t2ir1_ray.errors import UserError
from t2ir1_ray.journal import trackers
from t2ir1_ray.journal.trackers import TRACKERS, Trackers

CONFIG = {
    "train": {"steps": 3, "seed": 0},
    "experts": {"hps": {"path": "a 'quoted' path", "runtime_env": {"env_vars": {"KEY": "secret"}}}},
}
PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, without the user's own settings, on a machine whose network must not be used."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    folder = tmp_path / "my run"
    folder.mkdir()
    return folder


def track(name: str, run: Path, first: int) -> None:
    """Three steps behind `first`, with an image."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install '.[trackers]'")
    said: list[str] = []
    opened = Trackers([name], run, CONFIG, first, said.append)
    for step in range(first + 1, first + 4):
        opened.log({"step": step, "loss": 0.5 * step, "kl": None, "grad_norm": float("nan"), "reward/a|b": 1}, step)
    opened.images("samples", PIXELS, first + 1)
    opened.close()
    assert said == []


@pytest.mark.slow
def test_wandb_writes_offline_and_goes_on_with_the_same_run(run: Path) -> None:
    track("wandb", run, 0)
    first = (run / "wandb.id").read_text()
    track("wandb", run, 3)
    assert (run / "wandb.id").read_text() == first
    written = sorted(path.name for path in (run / "wandb").glob("offline-run-*/*.wandb"))
    assert written == [f"run-{first}.wandb"] * 2
    assert all(file.stat().st_size for file in (run / "wandb").glob("offline-run-*/*.wandb"))
    assert list((run / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))


def test_mlflow_writes_into_the_run_folder_and_goes_on_with_the_same_run(run: Path) -> None:
    track("mlflow", run, 0)
    track("mlflow", run, 3)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(run / "mlflow").as_uri())
    (experiment,) = client.search_experiments(filter_string=f"name = '{trackers.EXPERIMENT}'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "my run"
    assert found.data.params == {"train.steps": "3", "train.seed": "0", "experts.hps.path": "a 'quoted' path"}
    assert set(found.data.metrics) == {"loss", "reward/a_b"}  # no value that is none, and no name it does not know
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 0.5 * step) for step in range(1, 7)]
    images = [item.path for item in client.list_artifacts(found.info.run_id, "samples")]
    assert images == ["samples/step_000001.png", "samples/step_000004.png"]


def test_an_unknown_tracker_gets_one_line(run: Path) -> None:
    with pytest.raises(UserError, match=r"journal.trackers=weights: must be one of wandb, mlflow"):
        Trackers(["weights"], run, CONFIG, 0, print)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_names_the_extra(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError

    monkeypatch.setattr(trackers.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install '.\[trackers\]'"):
        Trackers([name], run, CONFIG, 0, print)


class Fragile:
    """A tracker whose server goes away after a step."""

    steps: list[int] = []

    def open_run(self, run: Path, config: dict, resume_step: int) -> None:
        self.steps.clear()

    def log(self, metrics: dict, step: int) -> None:
        if self.steps:
            raise ConnectionError("server is gone\ndetails")
        self.steps.append(step)

    def images(self, name: str, pixels: np.ndarray, step: int) -> None:
        raise AssertionError("was left out")

    def close(self) -> None:
        raise AssertionError("was left out")


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "fragile", Fragile)
    said: list[str] = []
    opened = Trackers(["fragile"], run, CONFIG, 0, said.append)
    for step in (1, 2, 3):
        opened.log({"step": step}, step)
    opened.images("samples", PIXELS, 3)
    opened.close()
    assert said == ["fragile failed and gets no more figures: server is gone"]
