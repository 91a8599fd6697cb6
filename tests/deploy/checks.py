"""What must hold for rendered files: schemas of those who read them, and rules of our own. Complaints are lines."""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

DATA = Path(__file__).parent / "data"
FIVE_LISTS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def load(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, yaml.CSafeLoader))


def data(name: str) -> dict[str, Any]:
    return json.loads((DATA / name).read_text())


# --- cluster launcher


def ray_validates(config: Mapping[str, Any]) -> list[str]:
    """Ray's own opinion of a launcher file."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(dict(config))))
    except Exception as error:  # jsonschema's, ValueError, click's
        return [str(error).splitlines()[0]]
    return []


def launcher_rules(config: Mapping[str, Any]) -> Iterator[str]:
    """Ours. Ray passes a file that breaks any of them."""
    yield from (f"{name} is left out: Ray takes its own" for name in FIVE_LISTS if name not in config)
    if "initialization_commands" not in config:
        yield "initialization_commands are left out"
    options = " ".join(config.get("docker", {}).get("run_options", []))
    shell = " ".join(line for line in config.get("initialization_commands", []) if ">> ~/.bashrc" in line)
    for kind in ("head", "worker"):
        starts = [line for line in config.get(f"{kind}_start_ray_commands", []) if "ray start" in line]
        if len(starts) != 1:
            yield f"{kind}: {len(starts)} ray starts"
            continue
        start = starts[0]
        if "-e RAY_AUTH_MODE=token" not in options and "RAY_AUTH_MODE=token" not in shell:
            yield f"{kind}: ray start without token authentication"
        if "unset OMP_NUM_THREADS" not in start:
            yield f"{kind}: OMP_NUM_THREADS=1 of the launcher reaches the actors"
        if "--metrics-export-port=" not in start:
            yield f"{kind}: no port for metrics"
        store = re.search(r"--object-store-memory=(\d+)", start)
        if not store:
            yield f"{kind}: no size of the object store"
        run = " ".join(config.get("docker", {}).get(f"{kind}_run_options", []))
        shm = re.search(r"--shm-size=(\d+)g", run)
        if config.get("docker") and store and (not shm or int(shm[1]) * 1e9 <= int(store[1])):
            yield f"{kind}: /dev/shm is not larger than the object store"
    head = " ".join(config.get("head_start_ray_commands", []))
    if re.search(r"--dashboard-host[= ](?!127\.0\.0\.1|localhost)", head) or "--dashboard-host" not in head:
        yield "the dashboard does not listen on loopback only"
    if not {"--num-cpus=0", "--num-gpus=0"} <= set(head.split()):
        yield "actors may be placed on the head"
    token = config.get("file_mounts", {}).get("~/.ray/auth_token")
    if token != "~/.ray/auth_token" or "chmod 600 ~/.ray/auth_token" not in config.get("setup_commands", []):
        yield "the token does not reach every node, readable by its owner only"
    types = config.get("available_node_types", {})
    for name, node in types.items():
        head_type = name == config.get("head_node_type")
        if head_type and (node["resources"].get("CPU") != 0 or node["resources"].get("GPU")):
            yield f"{name}: the head has CPUs or GPUs for actors"
        if not head_type and node.get("min_workers") != node.get("max_workers"):
            yield f"{name}: min_workers is not max_workers"
        if config["provider"]["type"] == "aws" and not node["node_config"].get("SecurityGroupIds"):
            yield f"{name}: Ray's own security group lets port 22 in from everywhere"
    if config.get("docker") and "-v /shared:/shared" not in options:
        yield "the container does not see /shared"


def launcher_total(config: Mapping[str, Any], kind: str) -> float:
    types = config["available_node_types"]
    return sum(node["resources"].get(kind, 0) * node.get("max_workers", 0) for node in types.values())


def ec2_shapes(config: Mapping[str, Any]) -> list[str]:
    """node_config against botocore's model of RunInstances: names, types and enumerations."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    session = get_session()
    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    bad = [] if config["provider"]["region"] in session.get_available_regions("ec2") else ["region is unknown"]

    def enums(value: Any, of: Any, path: str) -> None:
        if of.type_name == "structure" and isinstance(value, dict):
            for key in value.keys() & of.members.keys():
                enums(value[key], of.members[key], f"{path}.{key}")
        elif of.type_name == "list" and isinstance(value, list):
            for item in value:
                enums(item, of.member, path)
        elif of.type_name == "string" and getattr(of, "enum", None) and value not in of.enum:
            bad.append(f"{path}={value}: none of {len(of.enum)}")

    for name, node in config["available_node_types"].items():
        asked = dict(node["node_config"]) | {"MinCount": 1, "MaxCount": 1}
        asked.pop("SubnetIds", None)  # Ray's own
        report = ParamValidator().validate(asked, shape)
        bad += [f"{name}: {report.generate_report()}"] if report.has_errors() else []
        enums(asked, shape, name)
    return bad


def gcp_shapes(config: Mapping[str, Any]) -> list[str]:
    """node_config against Google's description of an Instance."""
    schemas, bad = data("gcp_instance.json"), []

    def walk(value: Any, of: dict[str, Any], path: str) -> None:
        of = schemas[of["$ref"]] if "$ref" in of else of
        kind = of.get("type")
        expected = {"object": dict, "array": list, "boolean": bool, "integer": int, "string": str}[kind]
        if kind == "string" and of.get("format") == "int64" and type(value) is int:
            return
        if not isinstance(value, expected) or (kind == "integer" and isinstance(value, bool)):
            bad.append(f"{path}: {type(value).__name__}, not {kind}")
        elif kind == "object":
            for key, item in value.items():
                member = of.get("properties", {}).get(key) or of.get("additionalProperties")
                walk(item, member, f"{path}.{key}") if member else bad.append(f"{path}.{key}: unknown")
        elif kind == "array":
            for item in value:
                walk(item, of["items"], path)
        elif kind == "string" and of.get("enum") and value not in of["enum"]:
            bad.append(f"{path}={value}: none of {of['enum']}")

    for name, node in config["available_node_types"].items():
        walk(node["node_config"], {"$ref": "Instance"}, name)
    return bad


# --- Kubernetes


@cache
def _crds() -> dict[str, Any]:
    def strict(node: Any, names: bool = False) -> Any:
        if isinstance(node, list):
            return [strict(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: strict(value, key in ("properties", "kinds", "$defs")) for key, value in node.items()}
        if names:
            return node
        if node.get("x-kubernetes-int-or-string"):
            return {"type": ["integer", "string"]} | {k: node[k] for k in ("pattern",) if k in node}
        opened = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
        if node.get("type") == "object" and "properties" in node and not opened:
            node["additionalProperties"] = False
        return node

    return strict(data("kuberay.json"))


def kubernetes(document: Mapping[str, Any]) -> list[str]:
    """Against the operator's CRD, where unknown fields are errors, or the API server's schema of a core kind."""
    crds = _crds()
    if document.get("apiVersion") == "ray.io/v1" and document.get("kind") in crds["kinds"]:
        schema = crds["kinds"][document["kind"]] | {"$defs": crds["$defs"]}
        errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
        return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]
    import kubernetes_validate

    try:
        kubernetes_validate.validate(document, "1.34", strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.InvalidSchemaError) as error:
        return [str(error).splitlines()[0]]
    return []


def operator_rules(document: Mapping[str, Any]) -> Iterator[str]:
    """What KubeRay's validation refuses beyond its CRD, and rules of ours."""
    if document["kind"] not in ("RayJob", "RayCluster"):
        return
    name, spec = document["metadata"]["name"], document["spec"]
    cluster = spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{name}: no DNS label of at most 47 characters"
    auth = cluster.get("authOptions", {})
    if auth.get("mode") != "token" or not auth.get("secretName"):
        yield "no token, or one that a retry would not share"
    if "rayVersion" not in cluster:
        yield "rayVersion is missing: a token needs 2.52"
    if document["kind"] == "RayJob":
        yield from _job_rules(document)
    head = cluster["headGroupSpec"]
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "actors may be placed on the head"
    for group in (head, *cluster["workerGroupSpecs"]):
        yield from _group_rules(group, cluster)


def _job_rules(job: Mapping[str, Any]) -> Iterator[str]:
    spec = job["spec"]
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if spec.get("shutdownAfterJobFinishes") and rules:
        yield "shutdownAfterJobFinishes and deletionRules exclude each other"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    queued = "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", {})
    if queued and (not spec.get("shutdownAfterJobFinishes") or spec["rayClusterSpec"].get("enableInTreeAutoscaling")):
        yield "Kueue needs shutdownAfterJobFinishes and no autoscaling"
    if any(len(rule["condition"].keys() & {"jobStatus", "jobDeploymentStatus"}) != 1 for rule in rules):
        yield "a rule has exactly one of jobStatus and jobDeploymentStatus"
    order = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
    for status in ("jobStatus", "jobDeploymentStatus"):
        for value in {rule["condition"].get(status) for rule in rules} - {None}:
            here = sorted(
                (r for r in rules if r["condition"].get(status) == value), key=lambda r: order.index(r["policy"])
            )
            times = [rule["condition"].get("ttlSeconds", 0) for rule in here]
            if times != sorted(times):
                yield f"{value}: workers must go before their cluster"


def _group_rules(group: Mapping[str, Any], cluster: Mapping[str, Any]) -> Iterator[str]:
    name, pod = group.get("groupName", "head"), group["template"]["spec"]
    if name != "head" and not {"minReplicas", "maxReplicas"} <= group.keys():
        yield f"{name}: minReplicas and maxReplicas are missing"
    if cluster.get("enableInTreeAutoscaling") and pod.get("restartPolicy", "Never") != "Never":
        yield f"{name}: autoscaler v2 wants restartPolicy Never"
    container = pod["containers"][0]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    if requests != limits:
        yield f"{name}: requests are not limits"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container["volumeMounts"]}
    shm = mounts.get("/dev/shm", {}).get("emptyDir", {})
    store = int(group["rayStartParams"].get("object-store-memory", 0))
    if shm.get("medium") != "Memory" or _bytes(shm.get("sizeLimit", "0Gi")) <= store or not store:
        yield f"{name}: /dev/shm is no memory volume larger than the object store"
    elif _bytes(limits["memory"]) <= _bytes(shm["sizeLimit"]):
        yield f"{name}: the memory limit does not hold /dev/shm"
    if not all("persistentVolumeClaim" in mounts.get(path, {}) for path in ("/shared/models", "/shared/runs")):
        yield f"{name}: models and runs are not on claims"
    gpus = int(limits.get("nvidia.com/gpu", 0))
    if gpus and not (pod.get("nodeSelector") or pod.get("affinity")):
        yield f"{name}: any GPU would do"
    if gpus and not any(toleration["key"] == "nvidia.com/gpu" for toleration in pod.get("tolerations", [])):
        yield f"{name}: GPU nodes are tainted"


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi)", quantity).groups()
    return int(number) * 2 ** {"Gi": 30, "Mi": 20}[unit]


def kubernetes_total(cluster: Mapping[str, Any], resource: str) -> int:
    groups = cluster["workerGroupSpecs"]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    return sum(int(of.get(resource, 0)) * group["maxReplicas"] for of, group in zip(limits, groups, strict=True))


# --- Compose, SkyPilot


def compose(document: Mapping[str, Any]) -> list[str]:
    errors = jsonschema.Draft7Validator(data("compose_spec.json")).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]


def skypilot(document: Mapping[str, Any]) -> list[str]:
    schemas = data("skypilot_task.json")
    parts = {"task": document, "resources": document.get("resources", {})}
    return [
        f"{part}/{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for part, value in parts.items()
        for error in jsonschema.Draft7Validator(schemas[part]).iter_errors(value)
    ]
