"""Rendered files that several tests look at."""

import pytest

from deploy.render import Request, render
from deploy.write_examples import RECIPES, SHARED
from t2ir1_ray import config as configuration


@pytest.fixture(scope="session")
def rendered() -> dict[tuple[str, str], dict[str, str]]:
    """(configuration, target) -> text of every file, for the recipes and the embedded world."""
    from deploy.targets import TARGETS

    made = {}
    for name in (*RECIPES, "shapes"):
        shared = SHARED if name in RECIPES else ()
        request = Request(configuration.load(name, shared), name, None, shared)
        for target in TARGETS:
            made[name, target] = render(request, target)[0]
    return made
