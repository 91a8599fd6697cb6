"""One local Ray cluster per worker for all system tests, larger than the machine on paper so that several actors fit,
and the runs that several files look at, each made once for all workers."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from filelock import FileLock

from tests.system.newcomer import train_as_printed
from tests.system.runs import STEPS, run


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    os.environ["RAY_RUNTIME_ENV_PIP_CACHE_SIZE_GB"] = "0"  # an actor's own environment, 5 GB, goes with it
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 << 20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Callable[[Path], None]], Path]:
    """`once(name, make)`: the folder of that name, made by the first worker that asks; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # without workers, the parent holds earlier sessions too

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def whole(local_ray: None, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The run that nothing disturbed: what all others are compared with."""
    return once("whole", lambda folder: run(folder, f"train.steps={STEPS}"))


@pytest.fixture(scope="session")
def newcomer(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The folder in which somebody has typed the README's first training command: `runs/seed0` is its run."""
    return once("newcomer", train_as_printed)
