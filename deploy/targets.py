"""What `render` can write: per target its templates, the machines that it can have, and what only its user knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy import hardware
from deploy.hardware import Machine

REPLACE = "REPLACE"
"""Stands in every default that cannot be guessed."""


@dataclass(frozen=True)
class Target:
    """files: name of a file -> its template. site: values for `--set`, with their defaults."""

    files: Mapping[str, str]
    catalogue: Sequence[Machine]
    site: Mapping[str, str]
    config: str = "/etc/t2ir1/config.yaml"  # where nodes find the configuration that is written beside the files
    folder: str | None = "/shared/models"  # where relative paths begin; None: the batch file knows


IMAGE = {"image": f"{REPLACE}/t2ir1_ray:latest"}
_ANYWHERE = hardware.anywhere(hardware.GPUS)

TARGETS = {
    "aws": Target(
        {"cluster.yaml": "aws.yaml"},
        hardware.AWS,
        IMAGE
        | {
            "region": "us-east-1",
            "zone": "us-east-1a",
            "filesystem": f"fs-{REPLACE}.efs.us-east-1.amazonaws.com:/",
            "subnet": "",
            "security_group": f"sg-{REPLACE}",
            "instance_profile": "",
        },
    ),
    "gcp": Target(
        {"cluster.yaml": "gcp.yaml"},
        hardware.GCP,
        IMAGE
        | {
            "project": f"{REPLACE}-project",
            "region": "us-central1",
            "zone": "us-central1-a",
            "filestore": f"{REPLACE}-address:/share",
        },
    ),
    "local": Target(
        {"cluster.yaml": "local.yaml"},
        _ANYWHERE,
        {
            "head_ip": f"{REPLACE}-address",
            "worker_ips": f"{REPLACE}-address,{REPLACE}-address",
            "user": "ubuntu",
            "key": "~/.ssh/id_ed25519",
            "bin": "~/t2ir1_ray/.venv/bin",
            "ray_start": "",
        },
        config="/tmp/t2ir1_config.yaml",
    ),
    "kuberay": Target(
        {
            "storage.yaml": "kuberay/storage.yaml",
            "rayjob.yaml": "kuberay/rayjob.yaml",
            "rayjob-kueue.yaml": "kuberay/rayjob.yaml",
            "raycluster.yaml": "kuberay/raycluster.yaml",
        },
        _ANYWHERE,
        IMAGE | {"storage_class": f"{REPLACE}-rwx", "selector": "memory", "pods": "role", "queue": f"{REPLACE}-queue"},
    ),
    "slurm": Target(
        {"train.sbatch": "slurm.sbatch"},
        _ANYWHERE,
        {"time": "24:00:00", "partition": "", "python": ".venv/bin", "ray_start": ""},
        config="config.yaml",
        folder=None,
    ),
    "skypilot": Target(
        {"task.yaml": "skypilot.yaml"},
        _ANYWHERE,
        IMAGE | {"infra": "aws/us-east-1", "filesystem": f"fs-{REPLACE}.efs.us-east-1.amazonaws.com:/"},
    ),
    "compose": Target({"compose.yaml": "compose.yaml"}, _ANYWHERE, {"image": "t2ir1_ray:latest", "shared": "./shared"}),
}
