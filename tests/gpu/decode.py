"""Image tokens per second: the project's decoder on the plain trunk, beside a loop written like the official one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from actors.image_decoder import ImageDecoder
from t2ir1_ray.janus.policy import unconditional_ids
from tests.gpu.measure import CUDA, bounded, clock, seconds
from tests.gpu.models import SIZES, random_janus, random_prompts
from tests.gpu.profile import difference, kernels, summary
from tests.torch_trunk import TorchTrunk

PAD, GUIDANCE = 2, 5.0
IMAGE_TOKENS = 576


@dataclass(frozen=True)
class Lengths:
    """Single tokens are timed in the middle of an image: `middle` columns are filled by a prefill, and what `long`
    tokens take more than `short` ones is divided by their number. Whole images follow prompts of `prompt` tokens."""

    images: tuple[int, ...]
    middle: int
    prompt: int
    short: int
    long: int
    whole: int


REAL = Lengths(images=(16, 32, 64), middle=376, prompt=90, short=4, long=44, whole=IMAGE_TOKENS)
TINY = Lengths(images=(2,), middle=24, prompt=12, short=2, long=10, whole=36)


def figures(tiny: bool) -> Iterator[dict[str, object]]:
    torch.backends.cuda.enable_cudnn_sdp(False)  # as vLLM does where it is imported
    lengths = TINY if tiny else REAL
    for name, size in {"tiny": None}.items() if tiny else SIZES.items():
        janus = random_janus(size, torch.bfloat16)
        trunk = TorchTrunk(janus)
        for loop in ("ours", "official"):
            for images in lengths.images:
                for found in _loop(loop, janus, trunk, images, lengths):
                    yield {"model": name, "loop": loop, "images": images, **found}
                torch.cuda.empty_cache()
        if name != "1B":
            yield {"model": name, **_whole_images(trunk, lengths)}
            for found in _graphs_equal_eager(trunk, lengths):
                yield {"model": name, **found}
        del janus, trunk
        torch.cuda.empty_cache()


def _loop(
    loop: str, janus: JanusForConditionalGeneration, trunk: TorchTrunk, images: int, lengths: Lengths
) -> Iterator[dict[str, object]]:
    prompts = random_prompts(images, lengths.middle, lengths.middle // 10, trunk.lm_head.out_features)
    free = [unconditional_ids(prompt, PAD) for prompt in prompts]
    columns = 2 * sum(map(len, prompts)) + 2 * images * (lengths.short + lengths.long) // 2

    def generate(count: int) -> Callable[[], object]:
        if loop == "official":
            return partial(official_loop, janus, prompts, free, count, GUIDANCE)
        decoder = ImageDecoder(trunk, PAD, count)
        return partial(decoder.generate, prompts, free, range(images), GUIDANCE, 1.0)

    token = _token_s(generate, lengths)
    cost = bounded(token, *step_cost(trunk, 2 * images, columns))
    yield {**cost, "images_per_s": round(images / token / IMAGE_TOKENS, 3)}
    if images == lengths.images[0]:
        yield {"per_token": _token_kernels(generate)}


def _token_s(generate: Callable[[int], Callable[[], object]], lengths: Lengths) -> float:
    short, long = (clock(generate(count), repeats=1, warmup=1) for count in (lengths.short, lengths.long))
    return (long - short) / (lengths.long - lengths.short)


def _token_kernels(generate: Callable[[int], Callable[[], object]]) -> dict[str, object]:
    runs = [generate(count) for count in (14, 4)]
    for run in runs:
        run()
    return summary(difference(*map(kernels, runs), steps=10))


def _graphs_equal_eager(trunk: TorchTrunk, lengths: Lengths) -> Iterator[dict[str, object]]:
    """Do replayed steps draw the tokens of steps that are launched one by one, also after an update of the weights?"""
    replayed, launched = (ImageDecoder(trunk, PAD, lengths.long, round_rows=True) for _ in range(2))
    launched.graphs.enabled = False
    for images in (1, 2, 8, 9, 32, 64)[: None if CUDA else 4]:
        prompts = random_prompts(images, lengths.prompt, lengths.prompt // 2, trunk.lm_head.out_features)
        free = [unconditional_ids(prompt, PAD) for prompt in prompts]
        same = []
        for _ in range(2):
            drawn = [d.generate(prompts, free, range(images), GUIDANCE, 1.0).ids for d in (replayed, launched)]
            same.append(float((drawn[0] == drawn[1]).float().mean()))
            trunk.generation_head.vision_head.weight.mul_(-1)
        yield {"images": images, "graph_tokens_equal_eager": same[0], "after_an_update": same[1]}


def step_cost(trunk: TorchTrunk, rows: int, columns: int) -> tuple[int, int]:
    """(bytes read, floating-point operations) of one token in each row; columns: filled ones, of all rows together."""
    modules = (trunk.model.layers, trunk.model.norm, trunk.generation_aligner, trunk.generation_head)
    weights = [parameter for module in modules for parameter in module.parameters()]
    attention = trunk.model.layers[0].self_attn
    cached = 2 * columns * attention.kv_size * len(trunk.model.layers) * weights[0].itemsize
    products = sum(weight.numel() for weight in weights) * rows
    return sum(weight.nbytes for weight in weights) + cached, 2 * products


def _whole_images(trunk: TorchTrunk, lengths: Lengths) -> dict[str, object]:
    """The smallest number of images from prompt to last token: does the time of single tokens add up?"""
    images = lengths.images[0]
    prompts = random_prompts(images, lengths.prompt, lengths.prompt // 2, trunk.lm_head.out_features)
    free = [unconditional_ids(prompt, PAD) for prompt in prompts]
    decoder = ImageDecoder(trunk, PAD, lengths.whole)
    first, taken = (seconds(lambda: decoder.generate(prompts, free, range(images), GUIDANCE, 1.0)) for _ in range(2))
    found = {"images": images, "loop": "ours, whole images", "s": round(taken, 3), "images_per_s": images / taken}
    return found | {"first_call_s": round(first, 3)}


@torch.inference_mode()
def official_loop(
    janus: JanusForConditionalGeneration,
    prompts: Sequence[Sequence[int]],
    unconditional: Sequence[Sequence[int]],
    count: int,
    guidance: float,
    greedy: bool = False,
) -> Tensor:
    """(B, count) image tokens as the released code draws them, here through transformers' modules.

    Conditional and unconditional rows alternate; the cache and the mask grow by concatenation; one multinomial a step.
    One departure: positions do not count padding, without which images cannot agree.
    """
    rows = [row for pair in zip(prompts, unconditional, strict=True) for row in pair]
    width, device = max(map(len, rows)), janus.lm_head.weight.device
    ids = torch.tensor([[PAD] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    embeds, cache, drawn = janus.get_input_embeddings()(ids), None, []
    for _ in range(count):
        output = janus.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        logits = janus.model.generation_head(output.last_hidden_state[:, -1])
        conditional, free = logits[0::2], logits[1::2]
        probabilities = (free + guidance * (conditional - free)).softmax(-1)
        token = probabilities.argmax(-1, keepdim=True) if greedy else torch.multinomial(probabilities, 1)
        drawn.append(token)
        embeds = janus.prepare_embeddings_for_image_generation(token.repeat(1, 2).flatten())[:, None]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = positions[:, -1:] + 1
    return torch.cat(drawn, 1)
