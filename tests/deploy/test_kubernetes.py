"""KubeRay's and Kubernetes' files: strict schemas, the operator's rules, and what the configuration asks for."""

from typing import Any

import pytest

from actors.placement import plan, roles
from deploy.render import Request, render
from deploy.targets import TARGETS
from deploy.write_examples import RECIPES
from t2ir1_ray import config as configuration
from tests.deploy import checks

Rendered = dict[tuple[str, str], dict[str, str]]
NAMES = (*RECIPES, "shapes")
FILES = tuple(TARGETS["kuberay"].files)


def one(rendered: Rendered, file: str = "rayjob.yaml", name: str = "janus_pro_7b") -> dict[str, Any]:
    return checks.load(rendered[name, "kuberay"][file])[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_files_are_as_the_operator_and_we_want_them(rendered: Rendered, name: str, file: str) -> None:
    documents = checks.load(rendered[name, "kuberay"][file])
    assert documents
    for document in documents:
        assert not checks.kubernetes(document)
        assert not list(checks.operator_rules(document))


@pytest.mark.parametrize("name", NAMES)
def test_pods_hold_the_placement(rendered: Rendered, name: str) -> None:
    bundles = plan(roles(configuration.load(name))).bundles
    for cluster in (
        one(rendered, "rayjob.yaml", name)["spec"]["rayClusterSpec"],
        one(rendered, "raycluster.yaml", name)["spec"],
    ):
        assert checks.kubernetes_total(cluster, "nvidia.com/gpu") == sum(bundle.get("GPU", 0) for bundle in bundles)
        assert checks.kubernetes_total(cluster, "cpu") >= sum(bundle.get("CPU", 0) for bundle in bundles)


def test_a_learner_stays_on_one_node_and_roles_have_sizes_of_their_own(rendered: Rendered) -> None:
    config = configuration.load("janus_pro_7b")
    groups = {group["groupName"]: group for group in one(rendered)["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    limits = {n: g["template"]["spec"]["containers"][0]["resources"]["limits"] for n, g in groups.items()}
    assert limits["learner"]["nvidia.com/gpu"] == str(config.learner.ranks)
    assert groups["rollout"]["replicas"] == config.rollout.actors
    assert limits["rollout"]["nvidia.com/gpu"] == "1"
    assert len({of["memory"] for of in limits.values()}) == len(groups)


def test_pods_can_be_as_few_as_possible() -> None:
    config = configuration.load("janus_pro_7b")
    text = render(Request(config, "janus_pro_7b", None, site={"pods": "node"}), "kuberay")[0]["rayjob.yaml"]
    [job] = checks.load(text)
    assert not checks.kubernetes(job)
    assert not list(checks.operator_rules(job))
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["groupName"], group["replicas"]) == ("workers", 1)
    assert checks.kubernetes_total(job["spec"]["rayClusterSpec"], "nvidia.com/gpu") == 8


def test_kueue_has_a_variant(rendered: Rendered) -> None:
    job = one(rendered, "rayjob-kueue.yaml")
    assert "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
    assert "labels" not in one(rendered)["metadata"]


SPOILED = {
    "a typo deep in a volume": ("headGroupSpec.template.spec.volumes.0.persistentVolumeClam", {}),
    "a typo at the top": ("enableInTreeAutoscalin", True),
    "replicas as text": ("workerGroupSpecs.0.replicas", "1"),
    "an unknown mode": ("authOptions.mode", "tokens"),
    "parameters that are no text": ("headGroupSpec.rayStartParams.num-cpus", 0),
    "an unknown effect": ("workerGroupSpecs.0.template.spec.tolerations.0.efect", "NoSchedule"),
}
RULES = {
    "DNS label": ("metadata.name", "Janus_Pro"),
    "no token": ("spec.rayClusterSpec.authOptions", {"mode": "token"}),
    "rayVersion": ("spec.rayClusterSpec.rayVersion", None),
    "placed on the head": ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", "4"),
    "exclude each other": ("spec.shutdownAfterJobFinishes", True),
    "needs shutdownAfterJobFinishes": ("spec.ttlSecondsAfterFinished", 60),
    "before their cluster": ("spec.deletionStrategy.deletionRules.1.condition.ttlSeconds", 7200),
    "exactly one": ("spec.deletionStrategy.deletionRules.1.condition.jobDeploymentStatus", "Failed"),
    "Kueue needs": ("metadata.labels", {"kueue.x-k8s.io/queue-name": "q"}),
    "minReplicas": ("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", None),
    "are not limits": ("{container}.resources.requests.cpu", "1"),
    "no memory volume": ("{pod}.volumes.2.emptyDir.medium", ""),
    "does not hold /dev/shm": ("{container}.resources.limits.memory", "2Gi"),
    "not on claims": ("{pod}.volumes.1", {"name": "runs", "emptyDir": {}}),
    "any GPU": ("{pod}.affinity", None),
    "tainted": ("{pod}.tolerations", []),
}


def spoil(document: Any, path: str, value: object) -> None:
    *way, last = path.split(".")
    for key in way:
        document = document[int(key) if key.isdigit() else key]
    if value is None:
        del document[last]
    else:
        document[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize("what", list(SPOILED))
def test_a_broken_cluster_is_found(rendered: Rendered, what: str) -> None:
    path, value = SPOILED[what]
    for file, before in (("rayjob.yaml", "spec.rayClusterSpec."), ("raycluster.yaml", "spec.")):
        document = one(rendered, file)
        spoil(document, before + path, value)
        assert checks.kubernetes(document)


def test_a_broken_claim_is_found(rendered: Rendered) -> None:
    claim = one(rendered, "storage.yaml")
    claim["spec"]["storageClas"] = "x"
    assert checks.kubernetes(claim)


@pytest.mark.parametrize("complaint", list(RULES))
def test_a_broken_rule_is_found(rendered: Rendered, complaint: str) -> None:
    path, value = RULES[complaint]
    job = one(rendered)
    pod = "spec.rayClusterSpec.workerGroupSpecs.0.template.spec"
    spoil(job, path.format(pod=pod, container=f"{pod}.containers.0"), value)
    assert any(complaint in line for line in checks.operator_rules(job))


def test_autoscaled_pods_are_not_started_again(rendered: Rendered) -> None:
    cluster = one(rendered, "raycluster.yaml")
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert any("restartPolicy" in line for line in checks.operator_rules(cluster))
