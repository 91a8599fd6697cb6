"""The image decoder over the plain trunk: what it keeps between calls, rounded numbers of images, rows of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from actors.image_decoder import ImageDecoder
from actors.step_graphs import StepGraphs
from tests.actors.plain_images import BOI, BOS, PAD, greedy_image, image_prompts, unconditional
from tests.tiny_janus import IMAGE_TOKENS, tiny_model
from tests.torch_trunk import TorchTrunk


def decoder(model: torch.nn.Module, **options: bool) -> ImageDecoder:
    return ImageDecoder(TorchTrunk(model), PAD, IMAGE_TOKENS, **options)


def draw(decoder: ImageDecoder, images: int, guidance: float = 3.0, temperature: float = 1.0) -> list[list[int]]:
    prompts = (image_prompts() * images)[:images]
    return decoder.generate(
        prompts, list(map(unconditional, prompts)), range(images), guidance, temperature
    ).ids.tolist()


def test_one_decoder_draws_for_any_number_of_images_what_a_fresh_one_draws() -> None:
    model = tiny_model()
    kept, rounded = decoder(model), decoder(model, round_rows=True)
    for images in (2, 9, 1, 8, 3):
        for guidance in (3.0, 1.0):
            expected = draw(decoder(model), images, guidance)
            assert draw(kept, images, guidance) == expected
            assert draw(rounded, images, guidance) == expected
    assert len({tuple(row) for row in draw(kept, 9)}) == 9
    assert {images for images, _ in rounded.states} == {1, 4, 8, 16}  # 2 went when the cache grew for 9


def test_a_longer_prompt_makes_the_kept_cache_grow() -> None:
    model, prompts = tiny_model(), image_prompts()
    kept = decoder(model)
    long = [BOS, *([7, 8, 12, 13] * 20), BOI]
    for prompt in (prompts[0], long, prompts[1]):
        found = kept.generate([prompt], [unconditional(prompt)], [0], 3.0, 0.0)
        assert found.ids[0].tolist() == greedy_image(model, prompt, 3.0)
    assert kept.columns == 128


def test_a_row_is_the_same_whatever_stands_beside_it() -> None:
    kept = decoder(tiny_model())
    prompts = image_prompts()
    together = kept.generate(prompts, list(map(unconditional, prompts)), range(4), 3.0, 1.0)
    for row, prompt in enumerate(prompts):
        alone = kept.generate([prompt], [unconditional(prompt)], [row], 3.0, 1.0)
        assert alone.ids[0].tolist() == together.ids[row].tolist()
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[row], atol=1e-5, rtol=0)


def test_rows_that_guidance_subtracts_may_also_differ_in_how_they_begin() -> None:
    """Shared beginnings are read once; the result is that of reading each row by itself."""
    kept = decoder(tiny_model())
    prompts = image_prompts()
    free = list(map(unconditional, prompts))
    shared = kept.generate(prompts, free, range(4), 3.0, 1.0)
    unlike = [*free, [BOS, *[8] * (len(free[0]) - 2), BOI]]
    apart = kept.generate([*prompts, prompts[0]], unlike, [0, 1, 2, 3, 0], 3.0, 1.0)
    assert apart.ids[:4].tolist() == shared.ids.tolist()
    torch.testing.assert_close(apart.logprobs[:4], shared.logprobs, atol=1e-5, rtol=0)
    assert apart.ids[4].tolist() != shared.ids[0].tolist()


def test_new_weights_reach_the_table_of_image_embeddings() -> None:
    model = tiny_model()
    kept = decoder(model)
    before = draw(kept, 2)
    with torch.no_grad():
        kept.trunk.generation_embeddings.weight.mul_(-1)
    after = draw(kept, 2)
    assert after == draw(decoder(model), 2)
    assert [row[0] for row in after] == [row[0] for row in before]  # drawn before any image token was read
    assert after != before


class Card:
    """Records what is launched: a CUDA graph takes in what runs under `capture` and runs nothing meanwhile."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.capturing = False

    def step(self) -> None:
        self.said.append("captured" if self.capturing else "launched")

    @contextmanager
    def capture(self, graph: object, **options: object) -> Iterator[None]:
        self.capturing = True
        yield
        self.capturing = False

    def replay(self) -> None:
        self.said.append("replayed")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: card)
    monkeypatch.setattr(torch.cuda, "graph", card.capture)
    return card


def test_a_step_is_launched_once_then_captured_then_replayed(card: Card) -> None:
    graphs = StepGraphs(enabled=True)
    for kind in ("a", "a", "b", "a", "b"):
        graphs.run(kind, card.step)
    assert card.said == ["launched", "captured", "replayed", "launched", "replayed", "captured", "replayed"]


def test_graphs_are_forgotten_when_weights_lie_elsewhere(card: Card) -> None:
    graphs = StepGraphs(enabled=True)
    for addresses in ([1, 2], [1, 2], [1, 3]):
        graphs.hold(addresses)
        graphs.run("a", card.step)
    assert card.said == ["launched", "captured", "replayed", "launched"]
