"""LoRA (arXiv 2106.09685) on the policy's trunk through peft: what is trained is small, what is published is merged."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from t2ir1_ray.config import LearnerConfig

_ADAPTER = "default"


class Adapted(NamedTuple):
    """A linear layer under LoRA."""

    name: str  # of its weight in the policy without LoRA
    layer: LoraLayer

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that its merged weight is made of."""
        return [
            self.layer.get_base_layer().weight,
            self.layer.lora_A[_ADAPTER].weight,
            self.layer.lora_B[_ADAPTER].weight,
        ]

    def merged(self) -> Tensor:
        """W + alpha / r B A in the weight's dtype, summed in float32."""
        base, down, up = (parameter.detach() for parameter in self.parameters)
        return (base.float() + self.layer.scaling[_ADAPTER] * (up.float() @ down.float())).to(base.dtype)


def add_lora(model: nn.Module, config: LearnerConfig) -> list[nn.Parameter]:
    """Put adapters on the language model's linear layers and freeze everything else; returns what is left to train.

    Raises ValueError (peft) if no layer has a name of `lora_targets`.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(0)  # of A; B starts at zero, so that the policy starts unchanged
    inject_adapter_in_model(_config(config), model, _ADAPTER)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adapted_layers(model: nn.Module) -> Iterator[Adapted]:
    """The layers under LoRA, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield Adapted(f"{name}.weight", module)


def save_adapter(model: nn.Module, config: LearnerConfig, folder: Path) -> None:
    """The adapter alone in peft's layout: `PeftModel.from_pretrained(policy, folder)` loads it. Parameters in full."""
    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(model, adapter_name=_ADAPTER)
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    _config(config).save_pretrained(str(folder))


def _config(config: LearnerConfig) -> LoraConfig:
    names = "|".join(config.lora_targets)
    return LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=rf"model\.language_model\..*\.({names})"
    )
