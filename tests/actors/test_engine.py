"""Text engine and image decoder against transformers on the same weights, before and after weight updates."""

from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from transformers import JanusForConditionalGeneration

from actors.image_decoder import ImageDecoder, to_pixels
from actors.text_engine import Plan, TextEngine
from actors.weights import checksum
from t2ir1_ray.janus.policy import freeze
from tests.actors.plain_images import EOS, LONG, PAD, PROMPTS, greedy_image, image_prompts, unconditional
from tests.tiny_janus import IMAGE_CODES, IMAGE_TOKENS, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Iterator[TextEngine]:
    sizes = {"max_prompt": 48, "max_new": 32, "max_sequences": 16, "kv_cache_gb": 0.03125}
    engine = TextEngine(tiny_model().config, "float32", **sizes, nccl_transfer=True)  # with both ways of an update
    yield engine
    engine.close()


def plan_logprobs(model: JanusForConditionalGeneration, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """(L,) log-probs of a plan by transformers, unbatched and unpadded."""
    with torch.inference_mode():
        hidden = model.model.language_model(input_ids=torch.tensor([[*prompt, *ids]])).last_hidden_state
        logprobs = model.lm_head(hidden)[0].log_softmax(-1)
    return logprobs[len(prompt) - 1 : -1].gather(1, torch.tensor(ids)[:, None])[:, 0]


def assert_plans_match(plans: Sequence[Plan], model: JanusForConditionalGeneration) -> None:
    for prompt, plan in zip(PROMPTS, plans, strict=True):
        expected = plan_logprobs(model, prompt, plan.ids.tolist())
        torch.testing.assert_close(torch.from_numpy(plan.logprobs), expected, atol=1e-4, rtol=0)


def test_plans_have_transformers_logprobs_and_stop_at_the_end_token(engine: TextEngine) -> None:
    model = tiny_model()
    engine.take_weights(model.state_dict())
    plans = engine.generate(PROMPTS, seeds=range(4), temperature=1.0, eos_id=EOS)
    assert_plans_match(plans, model)
    for plan in plans:
        assert EOS not in plan.ids[:-1]
        assert len(plan.ids) == 32 or plan.ids[-1] == EOS
    greedy = engine.generate(PROMPTS, seeds=range(4), temperature=0.0, eos_id=EOS)
    for prompt, plan in zip(PROMPTS, greedy, strict=True):
        with torch.inference_mode():
            sequence = torch.tensor([[*prompt, *plan.ids.tolist()]])
            logits = model.lm_head(model.model.language_model(input_ids=sequence).last_hidden_state)[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == plan.ids.tolist()


def test_a_plan_that_ends_by_itself_at_the_limit_is_not_cut_off(engine: TextEngine) -> None:
    """The last token of a plan that was cut off, if it is its first of that kind, is made the end token."""
    engine.take_weights(tiny_model().state_dict())
    seeds = range(64)
    prompts = [PROMPTS[0]] * len(seeds)
    unending = engine.generate(prompts, seeds, temperature=1.0, eos_id=EOS)
    assert all(plan.truncated == (plan.ids[-1] != EOS) for plan in unending)
    fitting = [seed for seed, p in zip(seeds, unending, strict=True) if p.truncated and p.ids[-1] not in p.ids[:-1]]
    assert len(fitting) > 1
    for seed in fitting[:4]:
        cut = unending[seed].ids
        (whole,) = engine.generate(prompts[:1], [seed], temperature=1.0, eos_id=int(cut[-1]))
        assert whole.ids.tolist() == cut.tolist()
        assert len(whole.ids) == 32
        assert not whole.truncated


def test_a_sample_depends_on_its_seed_only(engine: TextEngine) -> None:
    engine.take_weights(tiny_model().state_dict())
    together = engine.generate(PROMPTS, seeds=[5, 6, 7, 8], temperature=1.0, eos_id=EOS)
    alone = [engine.generate([p], [s], 1.0, EOS)[0] for p, s in zip(PROMPTS, [5, 6, 7, 8], strict=True)]
    assert [p.ids.tolist() for p in together] == [p.ids.tolist() for p in alone]
    other = engine.generate(PROMPTS, seeds=[15, 16, 17, 18], temperature=1.0, eos_id=EOS)
    assert [p.ids.tolist() for p in together] != [p.ids.tolist() for p in other]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_greedy_image_tokens_equal_transformers_before_and_after_an_update(engine: TextEngine, guidance: float) -> None:
    decoder = ImageDecoder(engine.trunk, PAD, IMAGE_TOKENS)
    prompts = image_prompts()
    seen = []
    for model in (tiny_model(0), tiny_model(3)):
        engine.take_weights(model.state_dict())
        found = decoder.generate(prompts, list(map(unconditional, prompts)), range(4), guidance, temperature=0.0)
        assert found.ids.tolist() == [greedy_image(model, prompt, guidance) for prompt in prompts]
        seen.append(found.ids.tolist())
    assert seen[0] != seen[1]


def test_a_partial_update_of_the_trained_parameters_reaches_plans_and_images(engine: TextEngine) -> None:
    model = tiny_model(0)
    engine.take_weights(model.state_dict())
    trained = {name: parameter.detach() for name, parameter in freeze(tiny_model(3)).items()}
    engine.take_weights(trained)
    model.load_state_dict({**model.state_dict(), **trained})
    assert_plans_match(engine.generate(PROMPTS, range(4), 1.0, EOS), model)
    decoder = ImageDecoder(engine.trunk, PAD, IMAGE_TOKENS)
    prompts = image_prompts()
    found = decoder.generate(prompts, list(map(unconditional, prompts)), range(4), 5.0, 0.0)
    assert found.ids.tolist() == [greedy_image(model, prompt, 5.0) for prompt in prompts]


class InProcess:
    """Stands in for NCCL's group: each broadcast brings the next of the sender's tensors."""

    def __init__(self, sent: Iterable[torch.Tensor]):
        self.sent = iter(sent)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: None) -> None:
        tensor.copy_(next(self.sent))

    def destroy(self) -> None: ...


def test_an_update_over_nccl_reaches_plans_and_images(engine: TextEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's receiving end with all but NCCL itself; a second update follows on the same group."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    receiver = engine._llm.llm_engine.model_executor.driver_worker.worker.weight_transfer_engine
    engine.take_weights(tiny_model(0).state_dict())
    prompts = image_prompts()
    for seed in (3, 5):
        model = tiny_model(seed)
        trained = {name: parameter.detach() for name, parameter in freeze(model).items()}
        receiver.model_update_group = InProcess(trained.values())
        engine.start_update()
        engine.receive_update(
            {
                "names": list(trained),
                "dtype_names": ["float32"] * len(trained),
                "shapes": [list(tensor.shape) for tensor in trained.values()],
            }
        )
        assert engine.finish_update() == checksum(trained)
        frozen = {name: t for name, t in tiny_model(0).state_dict().items() if name not in trained}
        model.load_state_dict({**model.state_dict(), **frozen})
        assert_plans_match(engine.generate(PROMPTS, range(4), 1.0, EOS), model)
        found = ImageDecoder(engine.trunk, PAD, IMAGE_TOKENS).generate(
            prompts, list(map(unconditional, prompts)), range(4), 5.0, 0.0
        )
        assert found.ids.tolist() == [greedy_image(model, prompt, 5.0) for prompt in prompts]


def test_without_the_prefix_cache_reset_plans_would_be_stale(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above is able to fail: an update that keeps cached prefixes gives other log-probs than transformers."""
    engine.take_weights(tiny_model(0).state_dict())
    engine.generate(PROMPTS, range(4), 1.0, EOS)
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
    model = tiny_model(3)
    engine.take_weights(model.state_dict())
    plans = engine.generate(PROMPTS, range(4), 1.0, EOS)
    monkeypatch.undo()
    engine.take_weights(model.state_dict())
    stale = torch.from_numpy(plans[2].logprobs) - plan_logprobs(model, LONG, plans[2].ids.tolist())
    assert stale.abs().max() > 1e-2
    with pytest.raises(AssertionError):
        assert_plans_match(plans, model)


def test_without_the_push_plans_would_be_stale(engine: TextEngine) -> None:
    engine.take_weights(tiny_model(0).state_dict())
    with pytest.raises(AssertionError):
        assert_plans_match(engine.generate(PROMPTS, range(4), 1.0, EOS), tiny_model(3))


def test_a_ragged_batch_equals_single_samples(engine: TextEngine) -> None:
    engine.take_weights(tiny_model().state_dict())
    decoder = ImageDecoder(engine.trunk, PAD, IMAGE_TOKENS)
    prompts = image_prompts()
    together = decoder.generate(prompts, list(map(unconditional, prompts)), range(4), 3.0, 1.0)
    for row, prompt in enumerate(prompts):
        alone = decoder.generate([prompt], [unconditional(prompt)], [row], 3.0, 1.0)
        assert alone.ids[0].tolist() == together.ids[row].tolist()
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[row], atol=1e-5, rtol=0)


def test_image_logprobs_are_conditional_ones(engine: TextEngine) -> None:
    model = tiny_model()
    engine.take_weights(model.state_dict())
    decoder = ImageDecoder(engine.trunk, PAD, IMAGE_TOKENS)
    prompt = image_prompts()[0]
    found = decoder.generate([prompt], [unconditional(prompt)], [9], 5.0, 1.0)
    with torch.inference_mode():
        text = model.get_input_embeddings()(torch.tensor([prompt]))
        image = model.prepare_embeddings_for_image_generation(found.ids)
        hidden = model.model.language_model(inputs_embeds=torch.cat([text, image], 1)).last_hidden_state
        logprobs = model.model.generation_head(hidden[:, len(prompt) - 1 : -1]).log_softmax(-1)
    expected = logprobs.gather(2, found.ids[..., None])[..., 0]
    torch.testing.assert_close(found.logprobs, expected, atol=1e-4, rtol=0)


def test_sampled_tokens_follow_the_guided_distribution(engine: TextEngine) -> None:
    """First image token of 2,000 images against its probabilities (chi-square over codes, 99.9 % bound)."""
    model = tiny_model(scale=1.5)
    engine.take_weights(model.state_dict())
    decoder = ImageDecoder(engine.trunk, PAD, num_tokens=1)
    prompt, guidance, count = image_prompts()[0], 2.0, 2000
    rows = torch.tensor([prompt, unconditional(prompt)])
    with torch.inference_mode():
        conditional, free = model.model.generation_head(model.model.language_model(rows).last_hidden_state[:, -1])
    expected = (free + guidance * (conditional - free)).softmax(-1) * count
    found = decoder.generate([prompt] * count, [unconditional(prompt)] * count, range(count), guidance, 1.0)
    observed = torch.bincount(found.ids[:, 0], minlength=IMAGE_CODES).float()
    common = expected >= 5
    chi_square = ((observed - expected)[common] ** 2 / expected[common]).sum()
    freedom = float(common.sum())
    assert freedom >= 8
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 8


def test_pixels_are_the_vq_models(engine: TextEngine) -> None:
    model = tiny_model()
    ids = torch.randint(0, IMAGE_CODES, (3, IMAGE_TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pixels = to_pixels(model.model.vqmodel, ids)
        expected = model.decode_image_tokens(ids)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 24, 24, 3)
    torch.testing.assert_close(pixels.float(), ((expected + 1) * 127.5).clamp(0, 255).floor(), atol=1, rtol=0)
