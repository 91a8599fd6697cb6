"""cuDNN's attention, which plans anew for every shape, is off wherever a GPU works.

The image decoder asks for it by name, for its few shapes that come again: `actors.image_step`.
"""

from collections.abc import Iterator

import pytest
import torch

from actors import image_step
from actors.startup import take_device


@pytest.fixture(autouse=True)
def on() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_role_that_takes_a_gpu_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_device() == "cpu"
    assert torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert take_device() == "cuda"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


class OnCard(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("elsewhere", [True, False])
def test_the_decoder_decides_for_itself(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the process has: prompts, of any length, without it, single tokens with it."""
    found = []

    def attend(query: torch.Tensor, *_: object, **options: object) -> torch.Tensor:
        found.append(torch.backends.cuda.cudnn_sdp_enabled())
        return query

    monkeypatch.setattr(image_step.F, "scaled_dot_product_attention", attend)
    torch.backends.cuda.enable_cudnn_sdp(elsewhere)
    query = torch.zeros(1, 2, 3, 4).as_subclass(OnCard)
    image_step._attention(query, query, query, is_causal=True)
    image_step._attention(query, query, query, mask=torch.zeros(1, 1, 1, 3))
    assert found == [False, True]
    assert torch.backends.cuda.cudnn_sdp_enabled() == elsewhere
