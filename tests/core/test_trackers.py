"""Trackers run for real in their offline modes: nothing leaves the machine, everything lands in the run folder."""

import importlib.util
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from t2ir1_ray.errors import UserError
from t2ir1_ray.journal import trackers
from t2ir1_ray.journal.journal import GRID
from t2ir1_ray.journal.trackers import TRACKERS, Trackers
from tests.core.test_metric_names import REAL

OPTIONS = {"a": 1, "a/b": 2, "a b": 3, "über": 4}
CONFIG = {
    "train": {"steps": 3, "seed": 0},
    "experts": {"hps": {"path": "a 'quoted' path", "options": OPTIONS, "runtime_env": {"env_vars": {"KEY": "secret"}}}},
}
LINES = [json.loads(line) for line in REAL.read_text().splitlines()]
FIGURES = {
    (line["step"], key): value
    for line in LINES
    for key, value in line.items()
    if isinstance(value, int | float) and math.isfinite(value) and key != "step"
}
"""(step, name) -> value of all that a real run has to say."""
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


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For machines on which a start takes half a minute; what is about waiting sets its own times."""
    monkeypatch.setattr(trackers, "OPEN_S", 120.0)
    monkeypatch.setattr(trackers, "CLOSE_S", 120.0)


def track(name: str, run: Path, resume_step: int, offset: int) -> None:
    """The lines of a real run, `offset` steps later, with an image."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install '.[trackers]'")
    said: list[str] = []
    opened = Trackers([name], run, CONFIG, resume_step, said.append)
    for line in LINES:
        opened.log({**line, "step": line["step"] + offset, "nothing": None, "nan": float("nan")}, line["step"] + offset)
    opened.images(GRID, PIXELS, 1 + offset)
    opened.close()
    assert said == []


@pytest.mark.slow
def test_wandb_gets_all_that_a_real_run_writes_offline_and_goes_on_with_the_same_run(run: Path) -> None:
    track("wandb", run, 0, 0)
    first = (run / "wandb.id").read_text()
    track("wandb", run, 2, 3)
    assert (run / "wandb.id").read_text() == first
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{first}.wandb"] * 2
    assert list((run / "wandb").glob("offline-run-*/files/media/images/image_grid_*.png"))
    written = sorted((history(file) for file in files), key=lambda found: min(found)[0])
    assert written[0] == FIGURES
    assert {key for _, key in written[1]} == {key for _, key in FIGURES}


def history(file: Path) -> dict[tuple[int, str], float]:
    """(step, name) -> value of an offline run, when wandb's own process has written all of it."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 60
    records: list[Record] = []
    while not any(record.WhichOneof("record_type") == "exit" for record in records):
        records = [Record.FromString(data) for data in logged(file.read_bytes())]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = {}
    for record in records:
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and key[:1] != "_"}
        found |= {(row["step"], key): value for key, value in numbers.items() if key != "step" and GRID not in key}
    return found


def logged(data: bytes) -> Iterator[bytes]:
    """The records of wandb's file: LevelDB's log format behind a header of seven bytes."""
    place, record = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_mlflow_gets_all_that_a_real_run_writes_and_goes_on_with_the_same_run(run: Path) -> None:
    track("mlflow", run, 0, 0)
    track("mlflow", run, 2, 3)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(run / "mlflow").as_uri())
    (experiment,) = client.search_experiments(filter_string=f"name = '{trackers.EXPERIMENT}'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "my run"
    params = {"train.steps": "3", "train.seed": "0", "experts.hps.path": "a 'quoted' path"}
    options = {
        f"experts.hps.options.{key}": str(value)
        for key, value in zip(("a", "a.2f.b", "a.20.b", ".fc.ber"), (1, 2, 3, 4), strict=True)
    }
    assert found.data.params == params | options
    history = {
        (point.step, name): point.value
        for name in {name for _, name in FIGURES}
        for point in client.get_metric_history(found.info.run_id, name)
    }
    later = {(step + 3, name): value for (step, name), value in FIGURES.items()}
    assert history == FIGURES | later
    assert set(found.data.metrics) == {name for _, name in FIGURES}
    images = [item.path for item in client.list_artifacts(found.info.run_id, GRID)]
    assert images == [f"{GRID}/step_000001.png", f"{GRID}/step_000004.png"]


def silent_server(stack: ExitStack) -> int:
    """A port that takes a connection and never answers."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
    return server.getsockname()[1]


def dropping_port(stack: ExitStack) -> int:
    """A port whose queue of connections is full: what comes is dropped, as behind a firewall."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(server.getsockname())
    return server.getsockname()[1]


def hanging_up(stack: ExitStack) -> int:
    """A port that takes connections for a moment each, after the first answer was waited for."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def hang_up() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            time.sleep(1.0)
            connection.close()

    threading.Thread(target=hang_up, daemon=True).start()
    return server.getsockname()[1]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("server", [silent_server, dropping_port, hanging_up])
def test_a_run_does_not_wait_for_a_server_that_does_not_answer(
    server, run: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    track("mlflow", run, 0, 0)  # imports take their time, which is not measured
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server(stack)}")
    monkeypatch.setattr(trackers, "OPEN_S", 0.5)
    monkeypatch.setattr(trackers, "CLOSE_S", 0.5)
    said: list[str] = []
    begin = time.monotonic()
    opened = Trackers(["mlflow"], run, CONFIG, 0, said.append)
    for step in range(200):
        opened.log(LINES[1], step)
    opened.images(GRID, PIXELS, 1)
    opened.close()
    assert time.monotonic() - begin < 5
    assert said[0] == "mlflow does not answer: the run goes on, its figures wait in a queue of 64"
    assert said[1].startswith("mlflow failed and gets no more figures: ")
    assert len(said) == 2


def test_a_server_that_refuses_is_told_at_the_door(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"^journal.trackers=mlflow: mlflow does not start: [^\n]*refused[^\n]*$"):
        Trackers(["mlflow"], run, CONFIG, 0, print)


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
    """A tracker whose server goes away after a step, and (hangs) never comes back to say so."""

    steps: list[int] = []
    hangs = False

    def open_run(self, run: Path, config: dict, resume_step: int) -> None:
        self.steps.clear()

    def log(self, metrics: dict, step: int) -> None:
        if self.steps and self.hangs:
            threading.Event().wait()
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
    opened.images(GRID, PIXELS, 3)
    opened.close()
    assert said == ["fragile failed and gets no more figures: ConnectionError: server is gone details"]
    assert Fragile.steps == [1]


@pytest.mark.parametrize(
    ("steps", "why"), [(200, "has not answered for 64 calls"), (5, "no end within 0.2 s, 4 calls")]
)
def test_a_tracker_that_hangs_is_left_out_and_holds_up_no_other(
    steps: int, why: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy: list[int] = []

    class Healthy(Fragile):
        def log(self, metrics: dict, step: int) -> None:
            healthy.append(step)

        def close(self) -> None:
            healthy.append(-1)

    monkeypatch.setattr(Fragile, "hangs", True)
    monkeypatch.setattr(trackers, "CLOSE_S", 0.2)
    monkeypatch.setitem(TRACKERS, "fragile", Fragile)
    monkeypatch.setitem(TRACKERS, "healthy", Healthy)
    said: list[str] = []
    opened = Trackers(["fragile", "healthy"], run, CONFIG, 0, said.append)
    for step in range(steps):
        opened.log({"step": step}, step)
        while len(healthy) <= step:
            time.sleep(0.001)
    opened.close()
    assert len(said) == 1
    assert said[0].startswith("fragile failed and gets no more figures: ")
    assert why in said[0]
    assert healthy == [*range(steps), -1]
