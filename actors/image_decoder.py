"""The token-CoT: image tokens by guided decoding through the text engine's own modules.

Prompts are read once, then every image token is one step over state that stays where it is (`image_state`): on a GPU
all steps but the first of a kind are replays of a CUDA graph (`step_graphs`), on a CPU the same function runs as it
is. Every row has its own length and its own random stream, so an image does not depend on those beside it.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from actors.image_state import ImageState, KeyValueMemory, round_up
from actors.image_step import Draw, draw_token, next_token, read_prompts
from actors.step_graphs import StepGraphs

if TYPE_CHECKING:
    from actors.vllm_model import JanusTrunk

COLUMNS = 64
"""Columns of the cache are allocated, and attended to, in multiples of this: few shapes, few graphs."""


class ImageTokens(NamedTuple):
    """B images of I tokens."""

    ids: Tensor  # (B, I) int64
    logprobs: Tensor  # (B, I) float32, under the conditional distribution, or the guided one that was sampled


class ImageDecoder:
    """Samples image tokens from softmax((uncond + w (cond - uncond)) / temperature) (Janus-Pro, equation of CFG).

    Memory is kept between calls and grows to the largest one.
    """

    def __init__(self, trunk: "JanusTrunk", pad_id: int, num_tokens: int, round_rows: bool | None = None):
        """round_rows: decode for a few numbers of images only and cut the rest off (default: on a GPU, where every
        number has graphs of its own)."""
        self.trunk = trunk
        self.pad_id = pad_id
        self.num_tokens = num_tokens
        cuda = trunk.lm_head.weight.is_cuda
        self.round_rows = cuda if round_rows is None else round_rows
        self.memory = KeyValueMemory(trunk)
        self.graphs = StepGraphs(cuda)
        self.states: dict[tuple[int, bool], ImageState] = {}
        self.columns = 0

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        unconditional: Sequence[Sequence[int]],
        seeds: Sequence[int],
        guidance: float,
        temperature: float,
        guided_logprobs: bool = False,
    ) -> ImageTokens:
        """One image per prompt (each ending in <begin_of_image>).

        `unconditional`: the row that guidance subtracts, as long as its prompt; unused when `guidance` is 1.
        Each image has a random stream of its own, from its seed. `temperature=0`: greedy.
        """
        guided, wanted = guidance != 1.0, len(prompts)
        spare = (_rounded(wanted) - wanted) if self.round_rows else 0
        prompts = [*prompts, *[prompts[0]] * spare]
        unconditional = [*unconditional, *[unconditional[0]] * spare] if guided else []
        longest = max(map(len, prompts))
        state = self._state(len(prompts), guided, longest + self.num_tokens)
        state.begin([*prompts, *unconditional], _uniforms([*seeds, *[0] * spare], self.num_tokens))
        draw = Draw(guidance, temperature, guided_logprobs)
        draw_token(self.trunk, state, draw, read_prompts(self.trunk, state, prompts, unconditional, self.pad_id))
        for filled in range(longest + 1, longest + self.num_tokens):
            end = round_up(filled, COLUMNS)
            self.graphs.run((len(prompts), guided, end, draw), partial(next_token, self.trunk, state, draw, end))
        return ImageTokens(state.ids[:wanted].clone(), state.logprobs[:wanted].clone())

    def _state(self, images: int, guided: bool, columns: int) -> ImageState:
        """Of that shape. Graphs are forgotten when what they read or write has moved."""
        rows = 2 * images if guided else images
        columns = max(self.columns, round_up(columns, COLUMNS))
        grows = not self.memory.holds(rows, columns)
        if grows or columns != self.columns:
            self.states.clear()
            self.graphs.clear()
            self.columns = columns
        if grows:
            self.memory.grow(rows, columns)
        self.graphs.hold([parameter.data_ptr() for parameter in self.trunk.parameters()])
        key = images, guided
        if key not in self.states:
            self.states[key] = ImageState(self.trunk, self.memory.view(rows, columns), images, self.num_tokens)
        self.states[key].embeddings.copy_(
            self.trunk.generation_aligner(self.trunk.generation_embeddings.weight)  # of all codes
        )
        return self.states[key]


def to_pixels(vq: JanusVQVAE, image_ids: Tensor) -> Tensor:
    """VQ decoding: (B, I) int64 -> (B, H, W, 3) uint8 on the CPU, rounded down as in the official code."""
    decoded = vq.decode(image_ids).float().permute(0, 2, 3, 1)
    return ((decoded + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).cpu()


def _rounded(images: int) -> int:
    """1, 2, 4, 8 and multiples of 8."""
    return round_up(images, 8) if images > 4 else 1 << (images - 1).bit_length()


def _uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """(B, count) float64 in [0, 1): row b depends on seeds[b] alone."""
    return torch.stack(
        [torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    )
