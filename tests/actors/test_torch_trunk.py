"""The plain PyTorch trunk, with which the image decoder runs where vLLM does not, is transformers' Janus."""

import pytest

from actors.image_decoder import ImageDecoder
from tests.actors.plain_images import PAD, greedy_image, image_prompts, unconditional
from tests.tiny_janus import IMAGE_TOKENS, tiny_model
from tests.torch_trunk import TorchTrunk


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_greedy_image_tokens_equal_transformers(guidance: float) -> None:
    model, prompts = tiny_model(), image_prompts()
    decoder = ImageDecoder(TorchTrunk(model), PAD, IMAGE_TOKENS)
    found = decoder.generate(prompts, list(map(unconditional, prompts)), range(len(prompts)), guidance, temperature=0.0)
    assert found.ids.tolist() == [greedy_image(model, prompt, guidance) for prompt in prompts]
