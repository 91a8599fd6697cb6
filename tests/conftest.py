"""Fixtures shared by all tests. Threads and offline switches are set before torch is imported anywhere."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from pathlib import Path

import pytest

pytest_plugins = ["tests.nothing_lost"]


@pytest.fixture(scope="session")
def tiny_janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Janus checkpoint folder with random weights, in transformers' layout."""
    from tests.tiny_janus import write_tiny_janus

    return write_tiny_janus(tmp_path_factory.mktemp("janus"), seed=0)
