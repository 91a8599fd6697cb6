"""Rendered files that several tests look at."""

from collections.abc import Iterator
from unittest import mock

import pytest

from deploy import sizing
from deploy.render import Request, render
from deploy.write_examples import RECIPES
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.doctor import policy_shapes
from t2ir1_ray.fitting.memory import Shapes


@pytest.fixture(scope="session", autouse=True)
def shapes_once() -> Iterator[None]:
    """Counting a policy's parameters takes a quarter of a second: once for each policy."""
    known: dict[str, Shapes | None] = {}

    def shapes(config: Config) -> Shapes | None:
        path = config.policy.path
        return known[path] if path in known else known.setdefault(path, policy_shapes(config))

    with mock.patch.object(sizing, "policy_shapes", shapes):
        yield


@pytest.fixture(scope="session")
def rendered(shapes_once: None) -> dict[tuple[str, str], dict[str, str]]:
    """(configuration, target) -> text of every file, for the recipes and the embedded world."""
    from deploy.targets import TARGETS

    made = {}
    for name in (*RECIPES, "shapes"):
        request = Request(configuration.load(name), name, None)
        for target in TARGETS:
            made[name, target] = render(request, target)[0]
    return made
