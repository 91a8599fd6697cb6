"""cuDNN's attention, which plans anew for every shape, is off wherever a GPU works.

The image decoder asks for it by name, for its few shapes that come again: `actors.image_step`.
"""

from collections.abc import Iterator

import pytest
import torch

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
