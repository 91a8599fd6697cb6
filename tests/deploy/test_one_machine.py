"""Compose and SkyPilot: their readers' schemas, and our rules."""

from typing import Any

import pytest

from deploy.write_examples import RECIPES
from tests.deploy import checks

Rendered = dict[tuple[str, str], dict[str, str]]
NAMES = (*RECIPES, "shapes")


def document(rendered: Rendered, target: str, name: str = "janus_pro_7b") -> dict[str, Any]:
    [one] = checks.load(rendered[name, target]["compose.yaml" if target == "compose" else "task.yaml"])
    return one


@pytest.mark.parametrize("name", NAMES)
def test_containers_share_one_machine(rendered: Rendered, name: str) -> None:
    compose = document(rendered, "compose", name)
    assert not checks.compose(compose)
    services = compose["services"]
    assert list(services) == ["head", "learner", "others"]
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert "0.0.0.0" not in rendered[name, "compose"]["compose.yaml"]
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["secrets"] == ["ray_auth_token"]
    given = [
        device
        for service in services.values()
        for reserved in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        for device in reserved["device_ids"]
    ]
    gpus = {"janus_pro_7b": 8, "janus_pro_1b": 4, "shapes": 0}[name]
    assert given == [str(index) for index in range(gpus)]


@pytest.mark.parametrize("name", NAMES)
def test_skypilot_takes_the_task(rendered: Rendered, name: str) -> None:
    task = document(rendered, "skypilot", name)
    assert not checks.skypilot(task)
    assert task["resources"].get("accelerators") == {"janus_pro_7b": "H100:8", "janus_pro_1b": "L40S:4"}.get(name)
    assert task["envs"]["RAY_AUTH_MODE"] == "token"
    assert "--dashboard-host=127.0.0.1" in task["run"]


@pytest.mark.parametrize(
    ("target", "path", "value"),
    [
        ("compose", ("services", "head", "shm_sice"), "1gb"),
        ("compose", ("services", "head", "environment"), 1),
        ("compose", ("services", "learner", "depends_on"), {"head": {"condition": "healthy"}}),
        ("compose", ("secret",), {}),
        ("skypilot", ("num_node",), 1),
        ("skypilot", ("num_nodes",), "two"),
        ("skypilot", ("resources", "acelerators"), "H100:8"),
        ("skypilot", ("resources", "use_spot"), "yes"),
    ],
)
def test_a_broken_file_is_found(rendered: Rendered, target: str, path: tuple[str, ...], value: object) -> None:
    whole = document(rendered, target)
    node = whole
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert (checks.compose if target == "compose" else checks.skypilot)(whole)
