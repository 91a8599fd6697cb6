"""Files of Ray's cluster launcher: Ray's own validation, the clouds' models of a machine, and our rules."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from actors.placement import plan, roles
from deploy.sizing import needs
from deploy.write_examples import RECIPES
from t2ir1_ray import config as configuration
from tests.deploy import checks

Rendered = dict[tuple[str, str], dict[str, str]]
TARGETS = ("aws", "gcp", "local")
NAMES = (*RECIPES, "shapes")


def launcher(rendered: Rendered, name: str, target: str) -> dict[str, Any]:
    [config] = checks.load(rendered[name, target]["cluster.yaml"])
    return config


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_files_are_as_ray_and_we_want_them(rendered: Rendered, name: str, target: str) -> None:
    config = launcher(rendered, name, target)
    assert not checks.ray_validates(config)
    assert not list(checks.launcher_rules(config))


@pytest.mark.parametrize("name", NAMES)
def test_machines_are_as_the_clouds_describe_them(rendered: Rendered, name: str) -> None:
    assert not checks.ec2_shapes(launcher(rendered, name, "aws"))
    assert not checks.gcp_shapes(launcher(rendered, name, "gcp"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["aws", "gcp"])
def test_machines_hold_the_placement_and_the_object_store_its_versions(
    rendered: Rendered, name: str, target: str
) -> None:
    config = configuration.load(name)
    bundles = plan(roles(config)).bundles
    file = launcher(rendered, name, target)
    for kind in ("CPU", "GPU"):
        assert checks.launcher_total(file, kind) >= sum(bundle.get(kind, 0) for bundle in bundles)
    assert f"--object-store-memory={needs(config).store_gb}000000000" in file["worker_start_ray_commands"][1]


def set_in(*path: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        node: Any = config
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to

    return change


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.pop(key)


WORKER = ("available_node_types", "workers")


@pytest.mark.parametrize(
    "spoil",
    [
        set_in("head_start_ray_comands", to=[]),
        set_in(*WORKER, "min_worker", to=1),
        set_in(*WORKER, "resources", "GPU", to=0.5),
        set_in("max_workers", to=0),
        set_in("docker", to={"image": "x"}),
        set_in("head_node_type", to="heed"),
        set_in("setup_commands", to=[{"a": 1}]),
    ],
)
def test_ray_refuses_a_broken_file(rendered: Rendered, spoil: Callable[[dict[str, Any]], None]) -> None:
    config = launcher(rendered, "janus_pro_7b", "aws")
    spoil(config)
    assert checks.ray_validates(config)


START = "unset OMP_NUM_THREADS; ray start --metrics-export-port=8080 --object-store-memory=42000000000"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        *((drop(name), "left out") for name in (*checks.FIVE_LISTS[:3], "initialization_commands")),
        (drop("head_start_ray_commands"), "0 ray starts"),
        (set_in("docker", "run_options", to=["-v /shared:/shared"]), "without token"),
        (set_in("docker", "run_options", to=["-e RAY_AUTH_MODE=token"]), "does not see /shared"),
        (set_in("file_mounts", to={}), "the token does not reach"),
        (set_in("setup_commands", to=[]), "readable by its owner"),
        (set_in("worker_start_ray_commands", to=[START.replace("unset OMP_NUM_THREADS;", "")]), "OMP_NUM_THREADS"),
        (set_in("worker_start_ray_commands", to=[START.replace("--metrics-export-port=8080", "")]), "no port"),
        (set_in("worker_start_ray_commands", to=[START.replace("42000", "99000")]), "not larger than"),
        (set_in("worker_start_ray_commands", to=["ray start --metrics-export-port=1"]), "no size"),
        (set_in("head_start_ray_commands", to=[f"{START} --dashboard-host=0.0.0.0"]), "loopback"),
        (set_in("head_start_ray_commands", to=[START]), "loopback"),
        (set_in("head_start_ray_commands", to=[f"{START} --num-gpus=0"]), "placed on the head"),
        (set_in("available_node_types", "head", "resources", to={"CPU": 4}), "CPUs or GPUs"),
        (set_in(*WORKER, "min_workers", to=0), "min_workers"),
        (set_in(*WORKER, "node_config", "SecurityGroupIds", to=[]), "port 22"),
    ],
)
def test_a_broken_rule_is_found(rendered: Rendered, spoil: Callable[[dict[str, Any]], None], complaint: str) -> None:
    config = launcher(rendered, "janus_pro_7b", "aws")
    spoil(config)
    assert any(complaint in line for line in checks.launcher_rules(config))


@pytest.mark.parametrize(
    ("target", "key", "value"),
    [
        ("aws", "InstanceTyp", "p5.48xlarge"),
        ("aws", "InstanceType", "p5.49xlarge"),
        ("aws", "ImageId", 1),
        ("aws", "InstanceMarketOptions", {"MarketType": "sopt"}),
        ("gcp", "machinType", "a3-highgpu-8g"),
        ("gcp", "scheduling", [{"onHostMaintenance": "TERMINATE"}]),
        ("gcp", "scheduling", {"provisioningModel": "SOPT"}),
        ("gcp", "disks", [{"boot": "true"}]),
    ],
)
def test_a_broken_machine_is_found(rendered: Rendered, target: str, key: str, value: object) -> None:
    config = copy.deepcopy(launcher(rendered, "janus_pro_7b", target))
    config["available_node_types"]["workers"]["node_config"][key] = value
    assert (checks.ec2_shapes if target == "aws" else checks.gcp_shapes)(config)
