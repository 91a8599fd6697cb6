"""LoRA: the learner computes with the weights that it publishes, and trains A and B as if nothing had been rounded."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora as peft_lora
from torch import nn

from learner import lora
from learner.logprobs import sequence_logprobs
from learner.lora import MergedLinear, add_lora, merged, merged_layers, published_weights
from learner.packing import MicroBatch, Sequences, micro_batches
from t2ir1_ray.config import LearnerConfig
from tests.learner.samples import random_batch
from tests.tiny_janus import tiny_model

TARGETS = LearnerConfig().lora_targets
CONFIG = LearnerConfig(lora_rank=4, lora_alpha=8.0)
FAMILIES = [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"o_proj"}, {"down_proj"}]


def batch_of(seed: int) -> MicroBatch:
    (batch,) = micro_batches(Sequences.of(random_batch(seed)), 100_000)[:1]
    return batch


def moved(model: nn.Module) -> nn.Module:
    """With adapters that do something: B starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for _, layer in merged_layers(model):
        up = layer.lora_B["default"].weight
        up.data.copy_(0.1 * torch.randn(up.shape, generator=generator))
    return model


@pytest.mark.parametrize("targets", [[name] for name in TARGETS] + [["q_proj", "v_proj"], TARGETS])
def test_all_parts_of_a_weight_that_engines_keep_in_one_are_published(targets: list[str]) -> None:
    model = tiny_model()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model, LearnerConfig(lora_rank=4, lora_targets=targets))
    published = {weight.name: weight.value() for weight in published_weights(moved(model))}
    wanted = set().union(*(family for family in FAMILIES if family & set(targets)))
    assert {name.split(".")[-2] for name in published} == wanted
    assert len(published) == len(wanted) * model.config.text_config.num_hidden_layers
    for name, tensor in published.items():
        assert torch.equal(tensor, plain[name]) == (name.split(".")[-2] not in targets), name


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_merging_in_pieces_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    base, down, up = (torch.randn(*shape, generator=generator) for shape in ((40, 24), (4, 24), (40, 4)))
    expected = (base.bfloat16().float() + 0.5 * up @ down).bfloat16()
    monkeypatch.setattr(lora, "CHUNK", rows * 24)
    found = merged(base.bfloat16(), down, up, 0.5)
    off = (found.float() - expected.float()).abs()
    assert (off <= 2**-8 * expected.float().abs()).all()  # one in the last place, where the sum lies between two
    assert (off > 0).float().mean() < 0.01


def test_a_layer_computes_with_what_it_publishes() -> None:
    model = tiny_model().bfloat16()
    add_lora(model, CONFIG)
    moved(model)
    values = {weight.name: weight.value() for weight in published_weights(model)}
    for name, layer in merged_layers(model):
        x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
        assert torch.equal(layer(x), F.linear(x, values[f"{name}.weight"])), name


def test_gradients_are_those_of_peft() -> None:
    """In float32, where rounding does not matter."""
    ours, theirs = tiny_model().train(), tiny_model().train()
    add_lora(ours, CONFIG)
    names = "|".join(CONFIG.lora_targets)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8.0, target_modules=rf".*language_model.*({names})"), theirs)
    theirs.load_state_dict(moved(ours).state_dict())
    losses = []
    for model in (ours, theirs):
        values = sequence_logprobs(model, batch_of(0)).logprobs
        (values * torch.linspace(-1, 1, len(values))).mean().backward()
        losses.append(values.detach())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    adapters = [{n: p.grad for n, p in model.named_parameters() if "lora_" in n} for model in (ours, theirs)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, grad in adapters[0].items():
        scale = adapters[1][name].abs().max()
        assert scale > 0, name
        assert (grad - adapters[1][name]).abs().max() < 1e-4 * scale, name


def drifts(steps: int, rate: float) -> Iterator[float]:
    """Largest difference between the learner's log-probs and those of a plain model with the published weights, in
    bfloat16 under Adam with float32 masters, as DeepSpeed keeps them, at every step."""
    learner, sampler = tiny_model().bfloat16(), tiny_model().bfloat16()
    parameters = add_lora(learner, CONFIG)
    masters = [parameter.detach().float() for parameter in parameters]
    optimizer = torch.optim.Adam(masters, lr=rate)
    for step in range(steps):
        batch = batch_of(step % 5)
        sampler.load_state_dict({w.name: w.value() for w in published_weights(learner)}, strict=False)
        values = sequence_logprobs(learner, batch).logprobs
        with torch.inference_mode():
            yield float((values - sequence_logprobs(sampler, batch).logprobs).abs().max())
        (values * torch.linspace(-1, 1, len(values))).mean().backward()
        for parameter, master in zip(parameters, masters, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        optimizer.step()
        for parameter, master in zip(parameters, masters, strict=True):
            parameter.data.copy_(master)


def test_learner_and_published_policy_stay_one_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate at which hardly an update is as large as the last bit of its weight."""
    assert set(drifts(50, 1e-4)) == {0.0}
    monkeypatch.setattr(MergedLinear, "forward", peft_lora.Linear.forward)  # the way that the test is against
    apart = list(drifts(10, 1e-4))
    assert min(apart[1:]) > 1e-3
