"""Machines that can be had: facts of the clouds' own pages, in the order in which they are to be preferred.

GB are 1e9 bytes. A machine of a cloud is what its provider calls an instance or machine type.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GIB = 2**30 / 1e9


@dataclass(frozen=True)
class Gpu:
    """gb: as nvidia-smi tells. gke, eks: values of those services' node labels, where they offer it."""

    name: str
    gb: float
    gke: str | None = None
    eks: str | None = None


@dataclass(frozen=True)
class Machine:
    """One machine type. gpu: None for one without GPUs."""

    name: str
    gpu: Gpu | None
    gpus: int
    cpus: float
    memory_gb: float


L4 = Gpu("L4", 24.1, "nvidia-l4", "l4")
A100_40 = Gpu("A100", 42.9, "nvidia-tesla-a100", "a100")
L40S = Gpu("L40S", 48.3, None, "l40s")
H100 = Gpu("H100", 85.5, "nvidia-h100-80gb", "h100")
A100_80 = Gpu("A100-80GB", 85.8, "nvidia-a100-80gb", "a100")
H200 = Gpu("H200", 150.7, "nvidia-h200-141gb", "h200")
B200 = Gpu("B200", 192.2, "nvidia-b200", "b200")
GPUS = (L4, A100_40, L40S, H100, A100_80, H200, B200)
"""Small ones first: the first that is large enough is taken."""


def _sizes(gpu: Gpu | None, *rows: tuple[str, int, int, int]) -> list[Machine]:
    """rows: name, GPUs, virtual CPUs, GiB."""
    return [Machine(name, gpu, gpus, cpus, gib * GIB) for name, gpus, cpus, gib in rows]


AWS = [
    *_sizes(None, ("m7i.xlarge", 0, 4, 16), ("m7i.2xlarge", 0, 8, 32), ("m7i.4xlarge", 0, 16, 64)),
    *_sizes(None, ("m7i.8xlarge", 0, 32, 128), ("m7i.16xlarge", 0, 64, 256)),
    *_sizes(L40S, ("g6e.2xlarge", 1, 8, 64), ("g6e.4xlarge", 1, 16, 128), ("g6e.12xlarge", 4, 48, 384)),
    *_sizes(L40S, ("g6e.48xlarge", 8, 192, 1536)),
    *_sizes(H100, ("p5.4xlarge", 1, 16, 256), ("p5.48xlarge", 8, 192, 2048)),
    *_sizes(A100_80, ("p4de.24xlarge", 8, 96, 1152)),
    *_sizes(H200, ("p5en.48xlarge", 8, 192, 2048)),
    *_sizes(B200, ("p6-b200.48xlarge", 8, 192, 2048)),
]
GCP = [
    *_sizes(None, ("n2-standard-4", 0, 4, 16), ("n2-standard-8", 0, 8, 32), ("n2-standard-16", 0, 16, 64)),
    *_sizes(None, ("n2-standard-32", 0, 32, 128), ("n2-standard-64", 0, 64, 256)),
    *_sizes(L4, ("g2-standard-16", 1, 16, 64), ("g2-standard-48", 4, 48, 192), ("g2-standard-96", 8, 96, 384)),
    *_sizes(A100_40, ("a2-highgpu-1g", 1, 12, 85), ("a2-highgpu-2g", 2, 24, 170), ("a2-highgpu-4g", 4, 48, 340)),
    *_sizes(A100_40, ("a2-highgpu-8g", 8, 96, 680)),
    *_sizes(H100, ("a3-highgpu-1g", 1, 26, 234), ("a3-highgpu-2g", 2, 52, 468), ("a3-highgpu-4g", 4, 104, 936)),
    *_sizes(H100, ("a3-highgpu-8g", 8, 208, 1872)),
    *_sizes(A100_80, ("a2-ultragpu-1g", 1, 12, 170), ("a2-ultragpu-2g", 2, 24, 340), ("a2-ultragpu-4g", 4, 48, 680)),
    *_sizes(A100_80, ("a2-ultragpu-8g", 8, 96, 1360)),
]


def anywhere(gpus: Sequence[Gpu]) -> list[Machine]:
    """Nodes of a place that we know nothing of: 1, 2, 4 or 8 GPUs, and whatever else is asked for."""
    return [
        Machine(f"{gpu.name}:{count}" if gpu else "cpu", gpu, count, float("inf"), float("inf"))
        for gpu in (None, *gpus)
        for count in ((1, 2, 4, 8) if gpu else (0,))
    ]
