"""LoRA (arXiv 2106.09685) on the policy's trunk through peft: what is trained is small, what is published is merged.

The learner computes with the merged weight as well, rounded to its dtype. W x + s B (A x), peft's way, is another
policy than the published one where an update is smaller than half the last bit of W: in bfloat16 most of them, for
hundreds of steps. A and B are trained as if nothing were rounded, so that small updates add up until they show.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners import lora
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from t2ir1_ray.config import LearnerConfig
from t2ir1_ray.janus.layout import fused_with

CHUNK = 1 << 24
"""Elements of a weight that are merged in float32 at one time (64 MiB)."""
_ADAPTER = "default"


def merged(base: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """W + s B A, summed in float32 and rounded once to W's dtype. (out, in), (r, in), (out, r) -> (out, in)."""
    out = torch.empty_like(base)
    step = max(1, CHUNK // base.shape[1])
    for start in range(0, len(base), step):
        rows = slice(start, start + step)
        out[rows] = torch.addmm(base[rows].float(), up[rows].float(), down.float(), alpha=scaling)
    return out


class _Product(torch.autograd.Function):
    """x (..., in) times the merged weight, whose gradient reaches A and B straight through the rounding.

    The merged weight lives inside of each pass only, and its own gradient (out, in) is never made.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x, base, down, up)
        ctx.scaling = s
        return F.linear(x, merged(base, down, up, s), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, base, down, up = ctx.saved_tensors
        grad_x = grad @ merged(base, down, up, ctx.scaling) if ctx.needs_input_grad[0] else None
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        return grad_x, None, None, (ctx.scaling * (grad @ up)).T @ x, grad.T @ (ctx.scaling * (x @ down.T)), None


class MergedLinear(lora.Linear):
    """peft's linear layer under LoRA, computed with its merged weight."""

    def forward(self, x: Tensor) -> Tensor:
        base, (weight, down, up) = self.get_base_layer(), adapted(self)
        return _Product.apply(x, weight, base.bias, down, up, self.scaling[_ADAPTER])


def adapted(layer: MergedLinear) -> list[nn.Parameter]:
    """W (frozen), A and B."""
    return [layer.get_base_layer().weight, layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]


class Published(NamedTuple):
    """A weight of the language model that rollout actors are given."""

    name: str  # in the policy without LoRA
    layer: nn.Module

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that it is made of."""
        return adapted(self.layer) if isinstance(self.layer, MergedLinear) else [self.layer.weight]

    def value(self) -> Tensor:
        """What the layer computes with."""
        parts = [parameter.detach() for parameter in self.parameters]
        return merged(*parts, self.layer.scaling[_ADAPTER]) if len(parts) > 1 else parts[0]


def add_lora(model: nn.Module, config: LearnerConfig) -> list[nn.Parameter]:
    """Put adapters on the language model's linear layers and freeze everything else; returns what is left to train.

    Raises ValueError (peft) if no layer has a name of `lora_targets`.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(0)  # of A; B starts at zero, so that the policy starts unchanged
    inject_adapter_in_model(_config(config), model, _ADAPTER)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def merged_layers(model: nn.Module) -> Iterator[tuple[str, MergedLinear]]:
    """The layers under LoRA by name, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, MergedLinear))


def published_weights(model: nn.Module) -> Iterator[Published]:
    """The weights under LoRA, and those that engines keep in one with them (`fused_with`), in the model's order."""
    names = (part for name, _ in merged_layers(model) for part in fused_with(f"{name}.weight")[1])
    for name in dict.fromkeys(names):
        yield Published(name, model.get_submodule(name.removesuffix(".weight")))


def save_adapter(model: nn.Module, config: LearnerConfig, folder: Path) -> None:
    """The adapter alone in peft's layout: `PeftModel.from_pretrained(policy, folder)` loads it. Parameters in full."""
    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(model, adapter_name=_ADAPTER)
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    _config(config).save_pretrained(str(folder))


def _config(config: LearnerConfig) -> LoraConfig:
    names = "|".join(config.lora_targets)
    made = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=rf"model\.language_model\..*\.({names})"
    )
    made._register_custom_module({nn.Linear: MergedLinear})  # documented by peft, for all its name
    return made
