"""Clocks, memory and the two rates of the card that bound everything else."""

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
GB = 1e9


class Card(NamedTuple):
    """What the device does at most."""

    copy_gb_per_s: float  # bytes read and bytes written
    tflop_per_s: float  # bfloat16 matrix product


@cache
def card() -> Card:
    """Measured: a copy of 2 GiB and a product of 8192 x 8192 matrices; small ones on a CPU."""
    source = torch.ones((2 << 30) if CUDA else (1 << 24), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    side = 8192 if CUDA else 256
    factor = torch.randn(side, side, device=DEVICE).bfloat16()
    rates = Card(
        2 * source.nbytes / GB / clock(lambda: target.copy_(source)),
        2 * side**3 / 1e12 / clock(lambda: factor @ factor),
    )
    if CUDA:
        torch.cuda.empty_cache()
    return rates


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Of one call, the device's work included."""
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin


def clock(work: Callable[[], object], repeats: int = 10, warmup: int = 3) -> float:
    """Median seconds of a call."""
    for _ in range(warmup):
        work()
    return statistics.median(seconds(work) for _ in range(repeats))


def peak_gb(work: Callable[[], object]) -> float | None:
    """GB that a call allocates at most beside what is held before it; None on a CPU."""
    if not CUDA:
        work()
        return None
    synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    synchronize()
    return (torch.cuda.max_memory_allocated() - before) / GB


def bounded(measured_s: float, moved_bytes: float = 0.0, flop: float = 0.0) -> dict[str, float]:
    """{ms, bound_ms, share}: what must be moved or computed at the card's rates, whichever takes longer."""
    rates = card()
    bound = max(moved_bytes / GB / rates.copy_gb_per_s, flop / 1e12 / rates.tflop_per_s)
    return {"ms": round(measured_s * 1e3, 3), "bound_ms": round(bound * 1e3, 3), "share": round(bound / measured_s, 3)}
