"""Nodes that come late, that hold different files, that are lost and come back: several real nodes on this machine."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.runs import assert_same_metrics, command_line, has_done, metrics, wait_until
from tests.system.several import ROOT, Nodes, answer

pytestmark = pytest.mark.slow
RESERVE = """
import dataclasses
from actors import placement
from t2ir1_ray import config
from t2ir1_ray.errors import UserError
experts = [f"experts.{name}" for name in ("hps", "git", "grounding_dino", "orm")]
one_cpu = [f"{role}.num_cpus=1" for role in ("learner", "rollout", "reference", *experts)]
address = "cluster.address=" + ray.get_runtime_context().gcs_address
settings = config.load("janus_pro_7b", [address, *one_cpu, *sys.argv[1:]])
try:
    reserved = placement.reserve(settings)
except UserError as error:
    print(json.dumps({"error": str(error)}))
else:
    roles = {node: sorted(roles) for node, roles in reserved.roles_by_node().items()}
    print(json.dumps({"roles": roles, "bundles": reserved.plan.bundles}))
    reserved.release()
"""


AGREE = """
from pathlib import Path
from actors.agreement import check_agreement
from t2ir1_ray import config
from t2ir1_ray.errors import UserError
settings = config.load("shapes", ["experts.hps.path=~/hps.pt"])
try:
    check_agreement(settings, Path(sys.argv[1]), {node: {"learner", "expert-hps"} for node in sys.argv[2:]})
except UserError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps("agreed"))
"""
MACHINES = """
from t2ir1_ray import config, doctor
print(json.dumps([str(check) for check in doctor.machines(config.load("shapes", sys.argv[1:]), measure=True)]))
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("nodes")) as started:
        yield started


@pytest.fixture
def nodes(head: Nodes) -> Iterator[Nodes]:
    """A head, to which each test adds nodes of its own."""
    yield head
    head.kill_added()


def test_a_run_waits_for_the_nodes_it_needs_and_keeps_its_ranks_together(nodes: Nodes) -> None:
    """Two nodes of four GPUs, the second one late: one holds the learner, the other everything else."""
    first = nodes.add(8, 4)
    refused = nodes.script(RESERVE, "cluster.place_timeout_s=2")["error"]
    few = "the cluster has too few CPUs (8 of 12) and GPUs (4 of 8)"
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


def test_nodes_that_hold_other_files_are_named(nodes: Nodes, tmp_path: Path) -> None:
    """Every node has a home of its own, and in it an expert's checkpoint."""
    homes = [tmp_path / "a", tmp_path / "b"]
    added = []
    for home in homes:
        home.mkdir()
        (home / "hps.pt").write_text("weights")
        added.append(nodes.add(1, HOME=str(home)))
    asked = [AGREE, str(tmp_path), *added]
    assert nodes.script(*asked) == "agreed"
    (homes[1] / "hps.pt").write_text("others")
    found = nodes.script(*asked)
    assert re.fullmatch(
        r"experts.hps.path: ~/hps.pt is not the same on node \S+ \(.*\) and on node .*: copy it.*", found
    )
    assert added[1][:6] in found.split(" and on ")[0]
    (homes[1] / "hps.pt").unlink()
    found = nodes.script(*asked)
    assert re.fullmatch(
        r"experts.hps.path: ~/hps.pt is on node .*, and not on node .*: copy it, or put it on .*", found
    )
    assert added[1][:6] in found.split(", and not on ")[1]
    assert sorted(tmp_path.iterdir()) == homes


def test_the_doctor_looks_at_every_node(nodes: Nodes, tmp_path: Path) -> None:
    """On one of two nodes everybody can read the token."""
    token = tmp_path / "token"
    shutil.copy(nodes.env["RAY_AUTH_TOKEN_PATH"], token)
    token.chmod(0o644)
    added = [nodes.add(2), nodes.add(2, RAY_AUTH_TOKEN_PATH=str(token))]
    settings = [f"cluster.address={nodes.address}", f"journal.root={tmp_path}"]
    *lines, cluster = nodes.script(MACHINES, *settings)
    assert len(lines) == 3 + 2, lines
    assert cluster == f"ok    cluster {nodes.address}: 3 nodes, 4 CPUs, 0 GPUs"
    head, good = (line for line in lines if "same versions and code, run folder shared" in line)
    assert added[0][:6] in head + good
    assert all(line.startswith("ok") and "/dev/shm" in line and "free for /tmp/ray" in line for line in (head, good))
    (warned,) = (line for line in lines if "others can read its token" in line)
    assert warned.startswith("warn")
    assert added[1][:6] in warned
    assert len([line for line in lines if re.search(r" to node .*: [\d.]+ GB/s through the object store", line)]) == 2


def test_a_node_is_lost_in_mid_step_and_another_one_comes(whole: Path, nodes: Nodes, tmp_path: Path) -> None:
    """The node of the rollout actor, which fits nowhere else: the run says what it waits for, goes on when there is
    room again, and leaves the journal that it leaves undisturbed."""
    folder = tmp_path / "run"
    nodes.add(1)
    lost = nodes.add(2)
    arguments = command_line(folder, "rollout.num_cpus=2", f"cluster.address={nodes.address}")
    with nodes.run("-m", "t2ir1_ray.train", *arguments, cwd=ROOT) as driver:
        wait_until(lambda: has_done(folder, 2), driver)
        nodes.kill(lost)
        said = [""]
        while "rollout 0: RESTARTING because its node" not in said[-1]:
            said.append(driver.stdout.readline())
            assert said[-1], "".join(said)
        assert re.search(r"is lost, since ..:..:..: it is waited for, at most 600 s$", said[-1].strip())
        nodes.add(2)
        rest, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, rest
    assert re.search(r"rollout 0: is up again, on node \S+, after \d+ s", rest)
    found = metrics(folder)
    assert_same_metrics(metrics(whole), found, tolerance=0)
    assert found[-1]["actors/restarts"] == 1
