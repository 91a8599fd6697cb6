"""Nodes that come late, that hold different files, that are lost and come back: several real nodes on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.several import ROOT, Nodes, answer

pytestmark = pytest.mark.slow
RESERVE = """
import dataclasses
from actors import placement
from t2ir1_ray import config
from t2ir1_ray.errors import UserError
settings = config.load("janus_pro_7b", ["cluster.address=" + ray.get_runtime_context().gcs_address, *sys.argv[1:]])
try:
    reserved = placement.reserve(settings)
except UserError as error:
    print(json.dumps({"error": str(error)}))
else:
    roles = {node: sorted(roles) for node, roles in reserved.roles_by_node().items()}
    print(json.dumps({"roles": roles, "bundles": reserved.plan.bundles}))
    reserved.release()
"""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path / "nodes") as started:
        yield started


def test_a_run_waits_for_the_nodes_it_needs_and_keeps_its_ranks_together(nodes: Nodes) -> None:
    """Two nodes of four GPUs, the second one late: one holds the learner, the other everything else."""
    first = nodes.add(8, 4)
    refused = nodes.script(RESERVE, "cluster.place_timeout_s=2")["error"]
    few = "the cluster has too few CPUs (8 of 11) and GPUs (4 of 8)"
    assert refused.startswith(f"resources: not placed within 2 s, {few}")
    with nodes.run("-c", nodes.connected(RESERVE), "cluster.place_timeout_s=60", cwd=ROOT) as driver:
        assert driver.stdout.readline().startswith(f"resources: {few}: waiting, 60 s at most")
        second = nodes.add(8, 4)
        roles = answer(driver, timeout=60)["roles"]
    assert sorted(roles) == sorted([first, second])
    assert ["learner"] in roles.values()

    # Somebody else has a GPU of each node: the ranks are in two pairs, where they would fit as three and one.
    fewer = ["rollout.actors=1", "reference.num_gpus=0.2"]
    fewer += [f"experts.{name}.num_gpus=0.2" for name in ("hps", "git", "grounding_dino", "orm")]
    other = """
from ray.util.placement_group import placement_group
assert placement_group([{"GPU": 1}] * 2, strategy="STRICT_SPREAD").wait(30)
"""
    found = nodes.script(other + RESERVE, "cluster.place_timeout_s=30", *fewer)
    assert [bundle["GPU"] for bundle in found["bundles"]] == [2, 2, 1, 1]
    assert all("learner" in roles for roles in found["roles"].values())
