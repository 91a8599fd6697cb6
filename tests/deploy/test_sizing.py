"""Sizes of nodes, from roles and memory."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.placement import fitting_plan, plan, roles
from deploy import hardware, sizing
from deploy.hardware import Machine
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config


def seven_b(*overrides: str) -> Config:
    """The recipe, whose weights go through the object store."""
    return configuration.load("janus_pro_7b", ["rollout.weight_transfer=object_store", *overrides])


def test_a_machine_of_eight_gpus_holds_the_recipe() -> None:
    of = sizing.needs(seven_b())
    for catalogue, name in ((hardware.AWS, "p5.48xlarge"), (hardware.GCP, "a3-highgpu-8g")):
        machine, group = sizing.machines(of, catalogue, "here")
        assert (machine.name, group.count, group.gpus) == (name, 1, 8)
        assert group.store_gb < group.shm_gb < group.memory_gb < machine.memory_gb


def test_the_first_gpu_that_is_large_enough_is_taken() -> None:
    of = replace(sizing.needs(seven_b()), gpu_gb=45.0)
    assert sizing.machines(of, hardware.AWS, "aws")[0].gpu is hardware.L40S
    assert sizing.machines(of, hardware.AWS, "aws", "H200")[0].gpu is hardware.H200
    assert sizing.machines(replace(of, gpu_gb=130.0), hardware.AWS, "aws")[0].gpu is hardware.H200


def test_ranks_beyond_one_machine_are_split_by_machines() -> None:
    of = sizing.needs(seven_b("learner.ranks=16"))
    learners = [unit for unit in of.units if unit.actors[0][0] == "learner"]
    assert [unit.gpus for unit in learners] == [8, 8]
    assert {group.name: group.count for group in sizing.pods(of)}["learner"] == 2


def test_more_memory_is_asked_for_larger_models_and_checkpoints() -> None:
    small, large = sizing.needs(configuration.load("janus_pro_1b")), sizing.needs(seven_b())
    assert small.store_gb < large.store_gb
    assert small.runs_gb < large.runs_gb
    lora = sizing.needs(seven_b("learner.lora_rank=64"))
    assert lora.runs_gb < large.runs_gb
    assert sizing.needs(seven_b("journal.keep_last=8")).runs_gb > large.runs_gb


def test_no_policy_versions_in_the_store_with_nccl() -> None:
    assert sizing.needs(seven_b("rollout.weight_transfer=nccl")).store_gb < 3


def test_the_embedded_world_needs_no_gpu() -> None:
    of = sizing.needs(configuration.load("shapes"))
    machine, group = sizing.machines(of, hardware.AWS, "aws")
    assert not machine.gpus
    assert group.count == 1
    assert [group.name for group in sizing.pods(of)] == ["learner", "rollout", "experts"]


BASE = seven_b()


@settings(max_examples=60)
@given(
    ranks=st.integers(1, 20),
    actors=st.integers(1, 9),
    share=st.sampled_from([0.25, 0.3, 0.5, 1.0, 2.0]),
    rollout_gpus=st.sampled_from([0.5, 1.0, 2.0]),
    replicas=st.integers(1, 3),
)
def test_nodes_hold_every_bundle(ranks: int, actors: int, share: float, rollout_gpus: float, replicas: int) -> None:
    orm = replace(BASE.experts["orm"], num_gpus=share, replicas=replicas)
    config = replace(
        BASE,
        learner=replace(BASE.learner, ranks=ranks),
        rollout=replace(BASE.rollout, actors=actors, num_gpus=rollout_gpus),
        experts=BASE.experts | {"orm": orm},
    )
    of = replace(sizing.needs(config), gpu_gb=10.0)
    bundles = plan(roles(config)).bundles
    gpus, cpus = (sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("GPU", "CPU"))
    pods = sizing.pods(of)
    rooms = [(group.cpus, group.gpus) for group in pods for _ in range(group.count)]
    found = fitting_plan(roles(config), rooms)
    assert found
    together = {bundle for (role, _), bundle in found.bundle_of.items() if role == "learner"}
    assert len(together) == -(-ranks // sizing.GPUS_PER_NODE)
    assert sum(group.gpus * group.count for group in pods) == gpus
    assert sum((group.cpus - sizing.RAY_CPUS) * group.count for group in pods) >= cpus
    assert len({group.name for group in pods}) == len(pods)
    for catalogue in (hardware.AWS, hardware.GCP, hardware.anywhere(hardware.GPUS)):
        machine, group = sizing.machines(of, catalogue, "here")
        assert fitting_plan(roles(config), [(group.cpus, machine.gpus)] * group.count)


@pytest.mark.parametrize("machine", [*hardware.AWS, *hardware.GCP], ids=lambda machine: machine.name)
def test_the_catalogue_is_in_order(machine: Machine) -> None:
    assert (machine.gpu is None) == (machine.gpus == 0)
    catalogue = hardware.AWS if machine in hardware.AWS else hardware.GCP
    order = [hardware.GPUS.index(m.gpu) for m in catalogue if m.gpu]
    assert order == sorted(order)
