"""In bfloat16 sampler and learner round at the same places: each layer to the last bit, and log-probs come closer."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from actors.image_decoder import ImageDecoder
from actors.text_engine import TextEngine
from learner.logprobs import score_rollouts
from learner.packing import Sequences
from t2ir1_ray.janus.rounding import round_as_engines
from tests.actors.plain_images import EOS, PAD, PROMPTS, image_prompts, unconditional
from tests.tiny_janus import IMAGE_TOKENS, tiny_model

pytestmark = pytest.mark.slow
ROWS = 12


def policy() -> JanusForConditionalGeneration:
    """With norms whose weights are not one: else it does not matter where they round."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.model.language_model.named_parameters():
            if "norm" in name:
                parameter.copy_((0.5 * torch.randn(parameter.shape, generator=generator)).exp())
    for parameter in model.parameters():  # not the frequencies of the rotary embedding, which stay in float32
        parameter.data = parameter.data.bfloat16()
    return model


@pytest.fixture(scope="module")
def engine() -> Iterator[TextEngine]:
    engine = TextEngine(policy().config, "bfloat16", 48, 32, max_sequences=16, kv_cache_gb=0.03125)
    engine.take_weights(policy().state_dict())
    yield engine
    engine.close()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@torch.inference_mode()
def test_each_layer_gives_the_learners_bits(engine: TextEngine) -> None:
    learner = policy()
    round_as_engines(learner)
    language = learner.model.language_model
    ours, theirs = language.layers[0], engine.trunk.model.layers[0]
    hidden, residual = random(ROWS, 64), random(ROWS, 64) * 3
    out, total = theirs.post_attention_layernorm(hidden.clone(), residual.clone())
    assert torch.equal(total, hidden + residual)
    assert torch.equal(out, ours.post_attention_layernorm(hidden + residual))
    assert torch.equal(theirs.input_layernorm(hidden.clone()), ours.input_layernorm(hidden))

    gate_up = random(ROWS, 256)
    gate, up = gate_up.chunk(2, -1)
    assert torch.equal(theirs.mlp.act_fn(gate_up), ours.mlp.act_fn(gate) * up)

    positions = torch.arange(ROWS)
    cos, sin = language.rotary_emb(hidden, positions[None])
    query = ours.self_attn.q_proj(hidden)
    turned, _ = theirs.self_attn.rotary_emb(positions, query.clone(), query[:, :32].clone())
    keys: list[Tensor] = []
    ours.self_attn(hidden[None], (cos, sin), past_key_values=Spy(keys))
    key, _ = theirs.self_attn.rotary_emb(positions, ours.self_attn.k_proj(hidden), query[:, :32].clone())
    assert torch.equal(key.view(ROWS, 1, 32).transpose(0, 1)[None], keys[0])
    assert not torch.equal(turned, query)


class Spy:
    """A cache of transformers that tells which keys it is given."""

    def __init__(self, keys: list[Tensor]):
        self.keys = keys

    def update(self, key: Tensor, value: Tensor, _: int) -> tuple[Tensor, Tensor]:
        self.keys.append(key)
        return key, value


def test_logprobs_of_sampler_and_learner_are_closer_than_with_transformers_roundings(engine: TextEngine) -> None:
    rows, count = PROMPTS * 32, 32 * len(PROMPTS)
    plans = engine.generate(rows, range(count), 1.0, EOS)
    prompts = image_prompts() * 32
    decoder = ImageDecoder(engine.trunk, PAD, IMAGE_TOKENS)
    images = decoder.generate(prompts, list(map(unconditional, prompts)), range(count), 3.0, 1.0)

    def ids(lists: list) -> list[np.ndarray]:
        return [np.array(each, np.int32) for each in lists]

    samples = Sequences(ids(rows), [plan.ids for plan in plans], ids(prompts), images.ids.numpy())
    own = np.concatenate([plan.logprobs for plan in plans]), images.logprobs.numpy()

    def differences(model: JanusForConditionalGeneration) -> list[float]:
        semantic, image = score_rollouts(model, samples, 10_000)
        pairs = zip(own, (np.concatenate(semantic), image), strict=True)
        return [float(np.abs(sampled - learned).mean()) for sampled, learned in pairs]

    plain = policy()
    before = differences(plain)
    round_as_engines(plain)
    after = differences(plain)
    assert all(0 < a < 0.85 * b for a, b in zip(after, before, strict=True)), (before, after)
