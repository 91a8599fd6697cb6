"""Which way of decoding a token is fast: attention in several ways, eagerly and as a CUDA graph, and where time goes.

Every row's keys and values begin at column 0 here, so that lengths differ at the end; a step repeats itself without
advancing. Relative differences are against attention written out as matrix products.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.gpu.attention import PRODUCTS, Shape, Way, ways
from tests.gpu.decode import step_cost
from tests.gpu.measure import CUDA, DEVICE, bounded, clock
from tests.gpu.models import SIZES, random_janus
from tests.gpu.step import Cache, Step
from tests.torch_trunk import TorchTrunk


@dataclass(frozen=True)
class Sizes:
    rows: tuple[int, ...]
    shape: Shape


REAL = Sizes((32, 64, 128), Shape(columns=704, near=448, filled=384))
TINY = Sizes((4,), Shape(columns=96, near=64, filled=40))


@torch.inference_mode()
def figures(tiny: bool) -> Iterator[dict[str, object]]:
    torch.backends.cuda.enable_cudnn_sdp(False)  # its way below asks for it by name
    sizes = TINY if tiny else REAL
    for name, size in {"tiny": None}.items() if tiny else SIZES.items():
        trunk = TorchTrunk(random_janus(size, torch.bfloat16))
        torch.cuda.empty_cache()
        for rows in sizes.rows:
            cache = Cache(trunk, rows, sizes.shape)
            for found in _at(trunk, cache):
                yield {"model": name, "rows": rows, "columns": sizes.shape.filled, **found}
            del cache
            torch.cuda.empty_cache()
        del trunk
        torch.cuda.empty_cache()


def _at(trunk: TorchTrunk, cache: Cache) -> Iterator[dict[str, object]]:
    rows, filled = cache.rows, cache.shape.filled
    weights, flop = step_cost(trunk, rows, 0)
    keys_and_values = step_cost(trunk, rows, rows * filled)[0] - weights
    for mode, run in modes(_products(trunk, rows)).items():
        yield {"what": "matrix products alone", "mode": mode, **bounded(clock(run, 5), weights, flop)}
    step = Step(trunk, cache, Way("none", lambda query, keys, values, prepared: query))
    for mode, run in modes(step).items():
        yield {"what": "step without attention", "mode": mode, **bounded(clock(run, 5), weights, flop)}
    for way in ways(cache.shape):
        try:
            step, plain = Step(trunk, cache, way), Step(trunk, cache, PRODUCTS.like(way, cache.shape))
            plain(), step()
            difference = float((step.logits - plain.logits).norm() / plain.logits.norm())
            alone = graphed(step.attention_alone) if CUDA else step.attention_alone
            yield {"what": "attention alone", "way": way.name, **bounded(clock(alone, 5), keys_and_values)}
            for mode, run in modes(step).items():
                cost = bounded(clock(run), weights + keys_and_values, flop)
                yield {"what": "step", "way": way.name, "mode": mode, **cost, "relative_difference": difference}
        except (RuntimeError, TypeError) as error:  # what this device or this torch cannot do is a finding
            yield {"what": "step", "way": way.name, "error": str(error)[:300]}


def modes(work: Callable[[], object]) -> dict[str, Callable[[], object]]:
    return {"eager": work, "graph": graphed(work)} if CUDA else {"eager": work}


def graphed(work: Callable[[], object]) -> Callable[[], object]:
    """The replay of what a call launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _products(trunk: TorchTrunk, rows: int) -> Callable[[], object]:
    """The linear layers of one step, on inputs that nothing computes."""
    attention, mlp = trunk.model.layers[0].self_attn, trunk.model.layers[0].mlp
    dtype = attention.qkv_proj.weight.dtype

    def inputs(width: int) -> Tensor:
        return torch.randn(rows, width, dtype=dtype, device=DEVICE)

    hidden, mixed = inputs(attention.qkv_proj.weight.shape[1]), inputs(attention.q_size)
    gated = inputs(mlp.down_proj.weight.shape[1])

    def work() -> None:
        for layer in trunk.model.layers:
            layer.self_attn.qkv_proj(hidden)
            layer.self_attn.o_proj(mixed)
            layer.mlp.gate_up_proj(hidden)
            layer.mlp.down_proj(gated)
        trunk.generation_head(hidden)

    return work
