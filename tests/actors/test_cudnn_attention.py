"""cuDNN's attention, which plans anew for every shape, is off wherever a GPU works."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from actors.image_decoder import ImageDecoder
from actors.startup import take_device
from tests.actors.plain_images import PAD, image_prompts, unconditional
from tests.tiny_janus import tiny_model
from tests.torch_trunk import TorchTrunk


@pytest.fixture(autouse=True)
def on() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_the_image_decoder_does_without_it_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    attend, seen = F.scaled_dot_product_attention, set()

    def watched(*args: object, **options: object) -> torch.Tensor:
        seen.add(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    prompts = image_prompts()
    ImageDecoder(TorchTrunk(tiny_model()), PAD, 2).generate(prompts, [*map(unconditional, prompts)], range(4), 5.0, 1.0)
    assert seen == {False}
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_role_that_takes_a_gpu_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_device() == "cpu"
    assert torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert take_device() == "cuda"
    assert not torch.backends.cuda.cudnn_sdp_enabled()
