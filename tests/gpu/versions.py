"""What a policy version costs on its way to the sampler: digests and copies between host and device."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from actors.weights import fingerprint
from tests.gpu.measure import CUDA, DEVICE, GB, card, clock, peak_gb

CHUNK = 1 << 24  # words
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
    same = chunked(embedding) == fingerprint(embedding)
    for way, digest in {"fingerprint": fingerprint, "in chunks": chunked}.items():
        peak = peak_gb(partial(digest, embedding))
        rate = embedding.nbytes / GB / clock(partial(digest, embedding), 3, 1)
        found = {"what": f"digest on {DEVICE.type}, {way}", "GB_per_s": rate, "share": rate / bound, "peak_GB": peak}
        yield found | {"chunks_agree": same}
    threads = torch.get_num_threads()
    for way, digest in {"fingerprint": fingerprint, "in chunks": chunked}.items():
        for count in _possible():
            torch.set_num_threads(count)
            taken = clock(partial(digest, small), 1, 0)
            yield {"what": f"digest on cpu, {way}", "threads": count, "GB_per_s": small.nbytes / GB / taken}
    torch.set_num_threads(threads)


def chunked(tensor: Tensor) -> str:
    """`fingerprint` with at most 3 x 8 bytes for each of `CHUNK` words at a time."""
    words = tensor.detach().contiguous().view(-1).view(torch.int16 if tensor.element_size() == 2 else torch.int32)
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].long()
        ramp = torch.arange(start, start + len(part), device=part.device) % 65521 + 1
        sums += torch.stack([part.sum(), (part * ramp).sum()])
    plain, weighted = sums.tolist()
    return f"{tuple(tensor.shape)} {tensor.dtype} {plain} {weighted}"


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
