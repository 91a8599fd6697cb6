"""Packing of policy versions and their checksum."""

import pytest
import torch

from actors.weights import Weights, checksum


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


@pytest.mark.parametrize("change", ["value", "order of elements", "name", "missing", "dtype", "shape"])
def test_the_checksum_notices(change: str) -> None:
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
    else:
        changed["a.weight"] = changed["a.weight"].T.contiguous().T.reshape(3, 5)
    assert checksum(changed) != checksum(state())
