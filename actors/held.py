"""Does the engine hold what it was given? A probe of every weight, after every update.

Digests are of what came in. What vLLM makes of it is another matter: it keeps several layers in one weight, of which a
part that did not come is whatever lay in memory, and packs weights for the processor. So the layers themselves are
asked: the image of a unit vector is a column of the weight, to the last bit, or NaN if anything in the weight is not
finite. A few columns hold a number of every row, so of every part of a weight.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from t2ir1_ray.errors import RunError
from t2ir1_ray.janus.layout import fused_with

COLUMNS = 4


class _Probe(NamedTuple):
    columns: Tensor  # (C,) int64, which; (0,) of a vector
    values: Tensor  # (rows, C); a vector in full


class Held:
    """Probes of everything that a model was ever given, by the names of single layers in the model's tree."""

    def __init__(self) -> None:
        self._probes: dict[str, _Probe] = {}
        self._latest: set[str] = set()

    def begin(self) -> None:
        """An update starts."""
        self._latest.clear()

    def note(self, name: str, tensor: Tensor) -> None:
        """`tensor` is about to be loaded."""
        width = tensor.shape[-1] if tensor.ndim > 1 else 0
        columns = torch.linspace(0, width - 1, min(COLUMNS, width), device=tensor.device).long()
        self._probes[name] = _Probe(columns, tensor.detach()[:, columns] if width else tensor.detach().clone())
        self._latest.add(name)

    @torch.inference_mode()
    def check(self, model: nn.Module) -> None:
        """At the end of an update. Raises RunError with the name of a weight that came in part, or that is not what
        was given last."""
        for name in sorted(self._latest):
            whole, parts = fused_with(name)
            missing = [part for part in parts if part not in self._latest]
            if missing:
                raise RunError(f"weights: {name} came without {', '.join(missing)}: the engine builds {whole} of all")
        for whole, parts in dict.fromkeys(map(fused_with, self._probes)):
            probes = [self._probes[part] for part in parts]
            found = _asked(model, whole, probes[0].columns)
            given = torch.cat([probe.values for probe in probes]).to(found)
            if not torch.equal(found[: len(given)], given):  # rows of padding behind a vocabulary
                raise RunError(f"weights: the engine's {whole} is not the one that it was given")

    def check_whole(self, model: nn.Module) -> None:
        """Before sampling. Raises RunError if a parameter was never given: vLLM has filled it with random numbers."""
        known = {fused_with(name)[0] for name in self._probes}
        lacking = [name for name, _ in model.named_parameters() if name not in known]
        if lacking:
            raise RunError(f"weights: {len(lacking)} were never given to the engine, the first is {lacking[0]}")


def _asked(model: nn.Module, name: str, columns: Tensor) -> Tensor:
    """(rows, C) columns of a weight as its layer uses it, or a vector in full."""
    layer = model.get_submodule(name.rpartition(".")[0])
    if not len(columns):
        return model.get_parameter(name)
    if not isinstance(layer, LinearBase | ParallelLMHead):
        return model.get_parameter(name)[:, columns]
    width = layer.embedding_dim if isinstance(layer, ParallelLMHead) else layer.input_size
    like = model.lm_head.weight  # on a CPU the layer's own may be packed away
    unit = torch.zeros(len(columns), width, dtype=like.dtype, device=like.device)
    unit[torch.arange(len(columns), device=like.device), columns.to(like.device)] = 1
    return layer.quant_method.apply(layer, unit).T
