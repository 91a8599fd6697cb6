"""An engine that holds something else than it was given is refused: LoRA on parts of what vLLM keeps as one weight."""

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn
from vllm.model_executor.models.llama import LlamaForCausalLM

from actors.text_engine import TextEngine
from actors.vllm_model import JanusTrunk
from learner.lora import add_lora, merged_layers, published_weights
from t2ir1_ray.config import LearnerConfig
from t2ir1_ray.errors import RunError
from t2ir1_ray.janus.layout import FUSED
from tests.tiny_janus import tiny_model

pytestmark = pytest.mark.slow
TARGETS = LearnerConfig().lora_targets
TRUNK = ("model.language_model.", "lm_head.", "model.generation_")
QKV, LAYER = "model.layers.0.self_attn.qkv_proj.weight", "model.language_model.layers.0.self_attn."


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest) -> Iterator[TextEngine]:
    engine = TextEngine(tiny_model().config, request.param, 48, 32, max_sequences=16, kv_cache_gb=0.03125)
    yield engine
    engine.close()


def adapted(targets: list[str]) -> dict[str, Tensor]:
    """What a learner publishes after some steps."""
    model = tiny_model()
    add_lora(model, LearnerConfig(lora_rank=4, lora_targets=targets))
    generator = torch.Generator().manual_seed(1)
    for _, layer in merged_layers(model):
        layer.lora_B["default"].weight.data.copy_(torch.randn(layer.out_features, 4, generator=generator))
    return {weight.name: weight.value() for weight in published_weights(model)}


def weight_of(layer: nn.Module, width: int, like: Tensor) -> Tensor:
    """All of a linear layer's weight as vLLM computes with it: on a CPU it is packed away."""
    with torch.inference_mode():
        return layer.quant_method.apply(layer, torch.eye(width, dtype=like.dtype)).T


def assert_holds(engine: TextEngine, state: dict[str, Tensor]) -> None:
    """Every linear layer of the trunk is that of `state`, parts in vLLM's order."""
    trunk = engine.trunk
    for number, layer in enumerate(trunk.model.layers):
        parts = {"self_attn.o_proj": ("o_proj",), "mlp.down_proj": ("down_proj",)}
        parts |= {"self_attn.qkv_proj": FUSED["qkv_proj"], "mlp.gate_up_proj": FUSED["gate_up_proj"]}
        for path, names in parts.items():
            prefix = f"model.language_model.layers.{number}.{path.split('.')[0]}."
            expected = torch.cat([state[f"{prefix}{name}.weight"] for name in names])
            found = weight_of(layer.get_submodule(path), expected.shape[1], trunk.lm_head.weight)
            assert torch.equal(found, expected.to(found.dtype)), (number, path)


def test_parts_are_those_of_vllm() -> None:
    assert {whole: list(parts) for whole, parts in FUSED.items()} == LlamaForCausalLM.packed_modules_mapping


@pytest.mark.parametrize("targets", [[name] for name in TARGETS] + [["q_proj", "v_proj"], TARGETS])
def test_after_an_update_by_lora_the_engine_holds_the_merged_policy(engine: TextEngine, targets: list[str]) -> None:
    base, state = tiny_model().state_dict(), adapted(targets)
    engine.take_weights(base)
    engine.take_weights(state)
    assert_holds(engine, base | state)


@pytest.mark.parametrize("sent", ["q_proj", "v_proj"])
def test_a_weight_that_comes_in_part_is_refused(engine: TextEngine, sent: str) -> None:
    base = tiny_model().state_dict()
    engine.take_weights(base)
    with pytest.raises(RunError, match=rf"{sent}\.weight came without .*: the engine builds .*qkv_proj"):
        engine.take_weights({f"{LAYER}{sent}.weight": base[f"{LAYER}{sent}.weight"]})


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        (f"{LAYER}v_proj.weight", lambda tensor: tensor * torch.nan),
        (f"{LAYER}k_proj.weight", lambda tensor: tensor.flip(0)),
        (f"{LAYER}q_proj.weight", lambda tensor: torch.cat([tensor[:-1], tensor[-1:] + 1])),
        ("model.language_model.embed_tokens.weight", lambda tensor: tensor.roll(1, 0)),
        ("model.language_model.norm.weight", lambda tensor: tensor + 1),
        ("model.generation_head.vision_head.weight", torch.zeros_like),
        ("lm_head.weight", lambda tensor: tensor * torch.nan),
    ],
)
def test_an_engine_that_holds_something_else_is_refused(
    engine: TextEngine, name: str, spoil: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update is noted and then spoilt on its way into vLLM's weights."""
    engine.take_weights(tiny_model().state_dict())
    renamed = JanusTrunk._renamed

    def spoiling(self: JanusTrunk, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for (given, _), (own, tensor) in zip(state.items(), renamed(self, weights), strict=False):
            yield own, spoil(tensor) if given == name else tensor

    monkeypatch.setattr(JanusTrunk, "_renamed", spoiling)
    state = {key: value for key, value in tiny_model(3).state_dict().items() if key.startswith(TRUNK)}
    with pytest.raises(RunError, match="is not the one that it was given"):
        engine.take_weights(state)
    monkeypatch.undo()
    engine.take_weights(state)


def test_a_policy_that_is_not_whole_does_not_sample(engine: TextEngine) -> None:
    trunk = engine.trunk
    engine.take_weights(tiny_model().state_dict())
    trunk.held.check_whole(trunk)
    fresh = type(trunk.held)()
    for name, tensor in trunk.generation_head.named_parameters():
        fresh.note(f"generation_head.{name}", tensor)
    with pytest.raises(RunError, match="never given to the engine, the first is model.embed_tokens.weight"):
        fresh.check_whole(trunk)
