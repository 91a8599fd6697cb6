"""Packing of policy versions and their digest."""

import weakref
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from actors import weights
from actors.weights import BLOCK, BLOCKS_AT_ONCE, Digest, Weights, block_sums, checksum


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(5, 3, generator=generator),
        "b.weight": torch.randn(4, generator=generator).bfloat16(),
    }


def test_packed_weights_come_back_bit_for_bit_from_read_only_memory() -> None:
    packed = Weights.pack(3, state())
    for buffer in packed.buffers.values():
        buffer.setflags(write=False)
    unpacked = packed.unpack()
    for name, tensor in state().items():
        assert unpacked[name].dtype == tensor.dtype
        assert torch.equal(unpacked[name], tensor), name
    assert checksum(unpacked) == checksum(state())


def test_packing_copies_nothing() -> None:
    whole = state()
    packed = Weights.pack(3, whole)
    assert all(packed.buffers[name].ctypes.data == tensor.data_ptr() for name, tensor in whole.items())


@pytest.mark.parametrize("change", ["value", "order of elements", "name", "missing", "dtype", "shape", "swapped names"])
def test_the_digest_notices(change: str) -> None:
    changed = state()
    if change == "value":
        changed["a.weight"][2, 1] = torch.nextafter(changed["a.weight"][2, 1], torch.tensor(9.0))
    elif change == "order of elements":
        changed["a.weight"] = changed["a.weight"].flip(0)
    elif change == "name":
        changed["z"] = changed.pop("a.weight")
    elif change == "missing":
        del changed["b.weight"]
    elif change == "dtype":
        changed["b.weight"] = changed["b.weight"].half()
    elif change == "shape":
        changed["a.weight"] = changed["a.weight"].T.contiguous().T.reshape(3, 5)
    else:
        changed = {"a.weight": changed["b.weight"], "b.weight": changed["a.weight"]}
    assert checksum(changed) != checksum(state())


def test_tensors_may_come_in_any_order() -> None:
    backwards = Digest()
    for name, tensor in reversed(state().items()):
        backwards.add(name, tensor)
    assert backwards.hexdigest() == checksum(state())


@pytest.mark.parametrize(
    "count", [0, 1, 2, 3, 7, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 6 * BLOCK + 5, 2 * BLOCK * BLOCKS_AT_ONCE + 5]
)
def test_sums_are_what_the_formula_says(count: int) -> None:
    """On two bytes a number; by numpy's integers, which wrap around as well."""
    tensor = torch.randint(-(2**15), 2**15, (count,), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    raw = tensor.numpy().tobytes()
    words = np.frombuffer(raw + bytes(-len(raw) % 4), "<i4").astype(np.int64)
    factors = weights._factors(torch.device("cpu")).numpy()
    parts = [words[start : start + BLOCK] for start in range(0, len(words), BLOCK)]
    expected = [int((part * factors[: len(part)]).sum()) for part in parts]
    assert block_sums(tensor.view(torch.bfloat16)).tolist() == expected
    assert (factors % 2 == 1).all()
    assert len(set(factors.tolist())) == BLOCK


def test_a_gpus_way_finds_the_same() -> None:
    blocks = torch.randint(-(2**31), 2**31, (5, BLOCK), generator=torch.Generator().manual_seed(2)).int()
    factors = weights._factors(blocks.device)
    assert torch.equal(weights._dots(blocks, factors), weights._products(blocks, factors))


class Allocated(TorchDispatchMode):
    """Bytes of tensors that are alive at one time, of those that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **kwargs or {})
        if isinstance(out, torch.Tensor) and not func.is_view:
            self._add(out.nbytes)
            weakref.finalize(out, self._add, -out.nbytes)
        return out

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.mark.parametrize("odd", [0, 1])
def test_on_a_gpu_the_digest_of_an_embedding_takes_64_mib(odd: int) -> None:
    """Janus-Pro-7B's, 839 MB, and a part of one that begins between two words. torch's meta device goes a GPU's way."""
    block_sums(torch.empty(1, device="meta"))  # the factors
    embedding = torch.empty(102_400 * 4096, dtype=torch.bfloat16, device="meta")[odd:]
    with Allocated() as allocated:
        sums = block_sums(embedding)
    assert len(sums) == 102_400 * 4096 // 2 // BLOCK
    assert 32 << 20 < allocated.peak <= 64 << 20


def test_a_slice_that_begins_between_two_words_is_read() -> None:
    tensor = torch.arange(9).bfloat16()
    assert torch.equal(block_sums(tensor[1:]), block_sums(tensor[1:].clone()))
    assert not torch.equal(block_sums(tensor[1:]), block_sums(tensor[:-1]))


# What can go wrong on the way, as functions of an array of words and two places in it.
MISTAKES: dict[str, Callable[[np.ndarray, int, int], None]] = {}


def mistake(change: Callable[[np.ndarray, int, int], None]) -> Callable[[np.ndarray, int, int], None]:
    MISTAKES[change.__name__] = change
    return change


@mistake
def a_flipped_bit(words: np.ndarray, i: int, j: int) -> None:
    words[i] ^= np.int32(1) << np.int32(j % 31)


@mistake
def a_flipped_sign(words: np.ndarray, i: int, j: int) -> None:
    words[i] ^= np.int32(-(2**31))


@mistake
def two_flipped_signs(words: np.ndarray, i: int, j: int) -> None:
    a_flipped_sign(words, i, 0)
    a_flipped_sign(words, j, 0)


@mistake
def two_changes_that_cancel_in_a_sum(words: np.ndarray, i: int, j: int) -> None:
    step = np.int32(1) << np.int32((i + j) % 31)
    words[i] += step
    words[j] -= step


@mistake
def two_swapped_words(words: np.ndarray, i: int, j: int) -> None:
    words[[i, j]] = words[[j, i]]


@mistake
def two_swapped_halves(words: np.ndarray, i: int, j: int) -> None:
    halves = words.view(np.int16)
    halves[[2 * i, 2 * j + 1]] = halves[[2 * j + 1, 2 * i]]


@mistake
def swapped_chunks(words: np.ndarray, i: int, j: int) -> None:
    first, second = sorted((i, j))
    size = min(second - first, len(words) - second)
    chunk = words[first : first + size].copy()
    words[first : first + size] = words[second : second + size]
    words[second : second + size] = chunk


@mistake
def swapped_blocks(words: np.ndarray, i: int, j: int) -> None:
    if len(words) >= 2 * BLOCK:
        words[: 2 * BLOCK] = np.roll(words[: 2 * BLOCK], BLOCK)


@mistake
def a_shifted_tensor(words: np.ndarray, i: int, j: int) -> None:
    words[:] = np.roll(words, i - j)


@mistake
def a_permuted_tensor(words: np.ndarray, i: int, j: int) -> None:
    np.random.default_rng([i, j]).shuffle(words)


@mistake
def a_stale_tail(words: np.ndarray, i: int, j: int) -> None:
    words[i:] = np.random.default_rng([i, j]).integers(-(2**31), 2**31, len(words) - i, np.int32)


@mistake
def a_tail_that_never_came(words: np.ndarray, i: int, j: int) -> None:
    words[min(i, j) :] = 0


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Words of 32 bits: few and any, or more than two blocks of random or nearly equal ones."""
    small = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20)
    if draw(st.booleans()):
        return np.array(draw(small), np.int32)
    length = 2 * BLOCK + draw(st.integers(0, 5))
    high = draw(st.sampled_from([2, 2**31 - 1]))
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(-high, high, length, np.int32)


@pytest.mark.parametrize("name", sorted(MISTAKES))
@settings(max_examples=40)
@given(data=st.data())
def test_no_mistake_goes_unnoticed(name: str, data: st.DataObject) -> None:
    before = data.draw(arrays())
    place = st.integers(0, len(before) - 1)
    after = before.copy()
    with np.errstate(over="ignore"):
        MISTAKES[name](after, data.draw(place), data.draw(place))
    same = np.array_equal(before, after)
    for dtype in (torch.float32, torch.bfloat16):
        old, new = (torch.from_numpy(words).view(dtype) for words in (before, after))
        assert (checksum({"w": old}) == checksum({"w": new})) == same


def test_no_two_of_many_near_states_have_one_digest() -> None:
    """Every two of four signs and every order of three equal blocks but for one word."""
    signs = [torch.tensor(values) for values in product([0.0, -0.0], repeat=8)]
    assert len({checksum({"w": tensor}) for tensor in signs}) == len(signs)
    blocks = [torch.zeros(3 * BLOCK) for _ in range(3)]
    for index, tensor in enumerate(blocks):
        tensor[index * BLOCK] = 1.0
    assert len({checksum({"w": tensor}) for tensor in blocks}) == 3
