"""Which kernels the device ran, from PyTorch's profiler."""

from collections.abc import Callable
from typing import NamedTuple

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.gpu.measure import CUDA, synchronize


class Kernel(NamedTuple):
    launches: float
    ms: float


def kernels(work: Callable[[], object]) -> dict[str, Kernel]:
    """By name, copies included; empty on a CPU."""
    return {
        event.key: Kernel(event.count, event.self_device_time_total / 1e3)
        for event in _events(work)
        if event.device_type == DeviceType.CUDA
    }


def difference(longer: dict[str, Kernel], shorter: dict[str, Kernel], steps: int) -> dict[str, Kernel]:
    """What each of the `steps` steps runs that the longer work has and the shorter has not."""
    found = {}
    for name, kernel in longer.items():
        common = shorter.get(name, Kernel(0, 0.0))
        if kernel.launches > common.launches:
            found[name] = Kernel((kernel.launches - common.launches) / steps, (kernel.ms - common.ms) / steps)
    return found


def summary(found: dict[str, Kernel], top: int = 8) -> dict[str, object]:
    """{kernels, kernel_ms, top}: sums, and [launches, ms, name] of what takes most time."""
    ranked = sorted(found.items(), key=lambda item: -item[1].ms)[:top]
    return {
        "kernels": round(sum(kernel.launches for kernel in found.values()), 1),
        "kernel_ms": round(sum(kernel.ms for kernel in found.values()), 3),
        "top": [[round(kernel.launches, 1), round(kernel.ms, 3), name[:90]] for name, kernel in ranked],
    }


def attention_operators(work: Callable[[], object]) -> list[str]:
    """The backends that scaled_dot_product_attention chose."""
    names = {event.key for event in _events(work)}
    return sorted(name for name in names if name.startswith("aten::_scaled_dot_product") and "backward" not in name)


def _events(work: Callable[[], object]) -> list:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities) as profiler:
        work()
        synchronize()
    return list(profiler.key_averages())
