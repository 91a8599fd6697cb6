"""Fixtures shared by all tests. Threads and offline switches are set before torch is imported anywhere."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("no deadline", deadline=None)  # others use the machine too
hypothesis.settings.load_profile("no deadline")
pytest_plugins = ["tests.nothing_lost"]
LONGEST = ("test_resume", "test_readme", "test_dead_processes", "test_nodes", "test_faults", "test_rank", "test_async")
"""Files that would keep one worker busy when the other has nothing left to do, had they not begun first."""


@pytest.fixture(scope="session")
def tiny_janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Janus checkpoint folder with random weights, in transformers' layout."""
    from tests.tiny_janus import write_tiny_janus

    return write_tiny_janus(tmp_path_factory.mktemp("janus"), seed=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first: pytest-xdist hands whole files to its workers in this order."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path.stem, len(rank)), item.path.parent.name != "system"))
