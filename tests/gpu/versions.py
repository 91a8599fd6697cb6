"""What a policy version costs on its way to the sampler: digests and copies between host and device."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from actors.weights import block_sums, checksum
from tests.gpu.measure import CUDA, DEVICE, GB, card, clock, peak_gb

THREADS = (1, 8, 16)


def figures(tiny: bool) -> Iterator[dict[str, object]]:
    count = 1 << 18 if tiny else 102400 * 4096  # the embedding of Janus-Pro-7B
    embedding = torch.randn(count, device=DEVICE).bfloat16()
    small = embedding[: count // 8].cpu()
    yield from _digests(embedding, small)
    yield from _threads(small)
    yield from _copies(embedding)


def _digests(embedding: Tensor, small: Tensor) -> Iterator[dict[str, object]]:
    bound = card().copy_gb_per_s / 2  # a digest reads, a copy also writes
    rate = embedding.nbytes / GB / clock(partial(block_sums, embedding), 3, 1)
    peak = peak_gb(partial(block_sums, embedding))
    same = torch.equal(block_sums(embedding[: len(small)]).cpu(), block_sums(small))
    yield {"what": f"digest on {DEVICE.type}", "GB_per_s": rate, "share": rate / bound, "peak_GB": peak, "as_cpu": same}
    pieces = {str(index): piece for index, piece in enumerate(small.chunk(64))}
    rate = small.nbytes / GB / clock(partial(checksum, pieces), 2, 1)
    yield {"what": "digest on cpu, its own threads", "GB_per_s": rate}


def _threads(small: Tensor) -> Iterator[dict[str, object]]:
    """Cryptographic digests of tensors side by side: hashlib lets go of the interpreter's lock."""
    pieces = [piece.view(torch.uint8).numpy() for piece in small.chunk(16)]
    for name in ("sha256", "blake2b"):
        for count in _possible():
            with ThreadPoolExecutor(count) as pool:
                rate = small.nbytes / GB / clock(partial(_hashes, pool, name, pieces), 2, 1)
            yield {"what": f"{name} on cpu", "threads": count, "GB_per_s": rate}


def _hashes(pool: ThreadPoolExecutor, name: str, pieces: Sequence[object]) -> list[bytes]:
    return list(pool.map(lambda piece: hashlib.new(name, piece).digest(), pieces))


def _possible() -> list[int]:
    return [count for count in THREADS if count <= (os.cpu_count() or 1)]


def _copies(embedding: Tensor) -> Iterator[dict[str, object]]:
    def rate(copy: Callable[[], object]) -> float:
        return embedding.nbytes / GB / clock(copy, 3, 1)

    host = torch.empty(embedding.shape, dtype=embedding.dtype)
    other = torch.empty_like(host)
    yield {"what": "device to host, pageable", "GB_per_s": rate(lambda: host.copy_(embedding))}
    yield {"what": "host to device, pageable", "GB_per_s": rate(lambda: embedding.copy_(host))}
    yield {"what": "host to host", "GB_per_s": rate(lambda: other.copy_(host))}
    if CUDA:
        pinned = torch.empty(embedding.shape, dtype=embedding.dtype, pin_memory=True)
        yield {"what": "device to host, pinned", "GB_per_s": rate(lambda: pinned.copy_(embedding))}
        yield {"what": "host to device, pinned", "GB_per_s": rate(lambda: embedding.copy_(pinned))}
