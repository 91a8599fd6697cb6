"""One local Ray cluster for all system tests, larger than the machine on paper so that several actors fit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.system.runs import run


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
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
def whole(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of six steps that nothing disturbed: what all others are compared with."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder, "train.steps=6")
    return folder
