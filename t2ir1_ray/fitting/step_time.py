"""How long a step takes: operations and bytes of every phase over what a GPU does in a second. An estimate.

Rates are the GPU's published ones times the share of them that a phase reaches. Shares were measured on one H200 with
random weights of the real sizes (`python -m tests.gpu`, tests/benchmarks/results/gpu_check_h200.json, whose parts are
named below) unless it says: assumed. On other GPUs the shares are taken to be the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.placement import plan, roles
from t2ir1_ray.config import Config, ExpertConfig
from t2ir1_ray.fitting.inventory import GB
from t2ir1_ray.fitting.memory import Shapes, published_bytes, trained_parameters


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet: dense bfloat16 products, memory traffic, memory."""

    name: str
    tflop_per_s: float
    gb_per_s: float
    memory_gb: float


CARDS = tuple(
    Card(*each)
    for each in (
        ("H200", 989, 4800, 141),
        ("H100", 989, 3350, 80),
        ("B200", 2250, 7700, 180),
        ("A100", 312, 2039, 80),
        ("L40S", 362, 864, 48),
    )
)
ASSUMED_CARD = CARDS[1]
"""Where none can be seen."""
MATMUL, COPY = 0.78, 0.87
"""Of the data sheet: 768 TFLOP/s and 4.19 TB/s (card)."""
LEARN = 0.6
"""Of the matrix rate, forward and backward, at 16,384 tokens: 0.59 for plans, 0.66 for images (learner)."""
TEXT = 0.5
"""Of the memory's rate, by one token of every plan in a CUDA graph: 0.47-0.59 (variants: step, graph). Not of vLLM."""
IMAGE = 0.37
"""The same without a graph, where the memory is what decides: 128 rows (decode: ours, 64 images)."""
LAYER_S = 0.75e-3
"""Of one layer and image token at least, to launch it: 16 images in 13.0 s of 576 x 30 (decode: whole images)."""
PIXELS, PIXELS_FLOP = 0.138, 0.57e12
"""Share of the matrix rate, and operations of one image of 384 x 384 with 128 channels (pixels)."""
STORE_S_PER_GB = 0.32
"""Through the object store: to the host at 13.0 GB/s, into the store at 23.5, to the device at 6.1, two digests at 60
(versions)."""
NCCL_S_PER_GB = 0.07
"""From GPU to GPU at 25 GB/s, assumed; and two digests."""
IMAGES_PER_S = {
    ("hps", "float32"): 98.0,
    ("hps", "bfloat16"): 392.0,
    ("git", "float32"): 19.6,
    ("git", "bfloat16"): 33.7,
    ("grounding_dino", "float32"): 12.9,
    ("grounding_dino", "bfloat16"): 15.5,
    ("orm", "float32"): 4.2,
    ("orm", "bfloat16"): 40.5,
}
"""(kind, dtype) -> of one expert with a GPU of its own, batches of 16 (experts: images_per_s_batched)."""
PLAN_PROMPT, PLAN, IMAGE_PROMPT = 160, 80, 90
"""Tokens, in the mean, of a planning prompt, of a plan, and of an image's prompt with its plan: assumed."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step. The four phases follow each other; with train.mode=async, rollouts, scores and the learner
    are at work at once.

    roles: of work of one actor, by role; None: not known. slowest: who most of the step waits for.
    """

    roles: Mapping[str, float | None]
    rollout: float
    score: float  # until the last score, when all images are there
    learn: float
    publish: float
    total: float
    slowest: str


def card_named(name: str) -> Card | None:
    """The card whose name is in a driver's or Ray's, such as `NVIDIA H100 80GB HBM3`."""
    return next((card for card in CARDS if card.name in name.upper()), None)


def step_time(config: Config, shapes: Shapes, card: Card) -> StepTime:
    """Of the policy with these shapes and the recipe's experts, everything on GPUs of this kind."""
    images = config.data.prompts_per_step * config.rollout.group_size
    rounds = call_rounds(config)
    call = call_seconds(config, shapes, card)
    learn = learn_seconds(config, shapes, card)
    publish = publish_seconds(config, shapes)
    work: dict[str, float | None] = {"learner": learn + publish, "rollout": call * len(rounds) + publish}
    if config.learner.beta > 0:
        work["reference"] = reference_seconds(config, shapes, card)
    for name, expert in config.experts.items():
        work[f"expert-{name}"] = expert_seconds(expert, images, card)
    busiest, scoring = busiest_gpu(config, work)
    rollout = call * len(rounds)
    score = tail_seconds(call, rounds, scoring / config.data.prompts_per_step)
    if config.train.mode == "async" and config.train.max_staleness:
        last_scores = score if config.learner.zero_variance == "resample" else 0.0  # else the next rollouts go on
        sides = {busiest: scoring, "rollout": rollout + last_scores + publish, "learner": learn + publish}
        slowest = max(sides, key=sides.__getitem__)
        total = sides[slowest]
    else:
        total = rollout + score + learn + publish
        phases = {"rollout": rollout, busiest: score, "learner": learn, "publishing": publish}
        slowest = max(phases, key=phases.__getitem__)
    return StepTime(work, rollout, score, learn, publish, total, slowest)


def call_rounds(config: Config) -> list[int]:
    """Prompts that are finished at the end of each round of rollout calls, one call an actor."""
    prompts, together = config.data.prompts_per_step, config.rollout.actors * config.rollout.prompts_per_call
    return [min(together, prompts - first) for first in range(0, prompts, together)]


def tail_seconds(call: float, rounds: Sequence[int], group: float) -> float:
    """From the last image to the last score: groups come at the end of each round and take `group` seconds each."""
    ready = 0.0
    for number, groups in enumerate(rounds, 1):
        ready = max(ready, number * call) + groups * group
    return ready - len(rounds) * call


def call_seconds(config: Config, shapes: Shapes, card: Card) -> float:
    """One rollout call: plans, image tokens, pixels."""
    return (
        text_seconds(config, shapes, card) + image_seconds(config, shapes, card) + pixel_seconds(config, shapes, card)
    )


def text_seconds(config: Config, shapes: Shapes, card: Card) -> float:
    """Of a call's plans: their prompts in one pass, then for each token the trunk, `lm_head` and what is cached of
    every sequence are read."""
    prompts, images = _call(config)
    plans, width = images // config.rollout.images_per_plan, _width(config.policy.dtype)
    plan_prompt, plan, _ = _lengths(config)
    read = width * (_trunk(shapes) + shapes.vocabulary * shapes.hidden)
    read += _cached(shapes, width) * plans * (plan_prompt + plan / 2)
    return plan * read / _bytes(card, TEXT) + 2 * _trunk(shapes) * plan_prompt * prompts / _flops(card, LEARN)


def image_seconds(config: Config, shapes: Shapes, card: Card) -> float:
    """Of a call's image tokens: as `text_seconds`, with the modules of generation instead of `lm_head`, in both rows of
    an image under guidance, and no faster than layers can be launched."""
    images, width = _call(config)[1], _width(config.policy.dtype)
    rows, prompt = images * (2 if config.rollout.guidance != 1 else 1), _lengths(config)[2]
    read = width * (_trunk(shapes) + shapes.generation)
    read += _cached(shapes, width) * rows * (prompt + shapes.image_tokens / 2)
    token = max(shapes.layers * LAYER_S, read / _bytes(card, IMAGE))
    return shapes.image_tokens * token + 2 * _trunk(shapes) * prompt * rows / _flops(card, LEARN)


def pixel_seconds(config: Config, shapes: Shapes, card: Card) -> float:
    """Of a call's VQ decoder: convolutions."""
    image = PIXELS_FLOP * (shapes.image_side / 384) ** 2 * (shapes.vq_channels / 128) ** 2
    return _call(config)[1] * image / _flops(card, PIXELS)


def learn_seconds(config: Config, shapes: Shapes, card: Card) -> float:
    """Three passes over every token, one more with gradient checkpointing, one less through layers that are frozen
    but for LoRA; and the optimizer, which reads 16 bytes and writes 14 for each trained parameter."""
    learner = config.learner
    passes = trunk_passes(config) + learner.gradient_checkpointing
    trunk, heads = _pass_flop(config, shapes)
    optimizer = 30 * trained_parameters(config, shapes) / learner.ranks / _bytes(card, 1.0)
    return (passes * trunk + 3 * heads) / learner.ranks / _flops(card, LEARN) + optimizer


def trunk_passes(config: Config) -> int:
    """Forward and twice as much backward; layers that are frozen but for LoRA need no gradient of their weights."""
    return 2 if config.learner.lora_rank else 3


def reference_seconds(config: Config, shapes: Shapes, card: Card) -> float:
    """Of one of its replicas: one pass over every token."""
    return sum(_pass_flop(config, shapes)) / config.reference.replicas / _flops(card, LEARN)


def publish_seconds(config: Config, shapes: Shapes) -> float:
    """A version's way to the rollout actors, which take it in side by side."""
    nccl = config.rollout.weight_transfer == "nccl"
    return published_bytes(config, shapes) / GB * (NCCL_S_PER_GB if nccl else STORE_S_PER_GB)


def expert_seconds(expert: ExpertConfig, images: int, card: Card) -> float | None:
    """Of one of its replicas, with a GPU of its own; None for what was not measured."""
    dtype = "bfloat16" if expert.dtype == "float16" else expert.dtype  # tensor cores are as fast with both
    rate = IMAGES_PER_S.get((expert.kind, dtype))
    return images / rate / expert.replicas * CARDS[0].tflop_per_s / card.tflop_per_s if rate else None


def busiest_gpu(config: Config, work: Mapping[str, float | None]) -> tuple[str, float]:
    """(the role that takes the most of it, seconds of the step) of the GPU that scores longest. Roles that share a GPU
    take turns: an upper bound, for they also work on the host."""
    shares: dict[int, dict[str, float]] = {}
    for (name, _), bundle in plan(roles(config)).bundle_of.items():
        if name not in ("learner", "rollout"):
            share = shares.setdefault(bundle, {})
            share[name] = share.get(name, 0.0) + (work.get(name) or 0.0)
    if not shares:
        return "rollout", 0.0
    longest = max(shares.values(), key=lambda share: sum(share.values()))
    return max(longest, key=longest.__getitem__), sum(longest.values())


def _pass_flop(config: Config, shapes: Shapes) -> tuple[float, float]:
    """Operations of one forward pass over a step's samples: (layers with attention, heads)."""
    rollout = config.rollout
    groups = config.data.prompts_per_step
    images, plans = groups * rollout.group_size, groups * rollout.group_size // rollout.images_per_plan
    plan_prompt, plan, image_prompt = _lengths(config)
    rows, length = images * image_rows(config), image_prompt + shapes.image_tokens
    return pass_flop(shapes, groups * plan_prompt, plans * plan, rows, rows * length, rows * length**2)


def image_rows(config: Config) -> int:
    """Sequences in which the learner computes one image."""
    return 2 if config.learner.image_logprobs == "guided" and config.rollout.guidance != 1 else 1


def pass_flop(
    shapes: Shapes, prompt_tokens: float, plan_tokens: float, rows: float, lengths: float, squares: float
) -> tuple[float, float]:
    """Operations of one forward pass: (layers with attention, heads).

    prompt_tokens: of planning prompts, one for all plans of a group; rows: sequences of images; lengths, squares: sums
    of their lengths and of the squares. Attention of plans is left out: it is a thousandth.
    """
    attention = 2 * shapes.layers * shapes.hidden * squares  # causal: half of the square
    head = shapes.hidden * (shapes.hidden + shapes.codes)
    heads = plan_tokens * shapes.vocabulary * shapes.hidden + rows * shapes.image_tokens * head
    return 2 * _trunk(shapes) * (prompt_tokens + plan_tokens + lengths) + attention, 2 * heads


def _call(config: Config) -> tuple[int, int]:
    """(prompts, images) of one rollout call."""
    prompts = min(config.rollout.prompts_per_call, config.data.prompts_per_step)
    return prompts, prompts * config.rollout.group_size


def _cached(shapes: Shapes, width: int) -> int:
    """Bytes of one token's keys and values."""
    return 2 * width * shapes.keys * shapes.layers


def _trunk(shapes: Shapes) -> int:
    """Parameters of the language model's layers."""
    return shapes.language - 2 * shapes.vocabulary * shapes.hidden


def _lengths(config: Config) -> tuple[int, int, int]:
    """Tokens in the mean of a planning prompt, a plan and an image prompt, where the limits leave room for them."""
    policy = config.policy
    plan = min(PLAN, policy.max_plan_tokens)
    return min(PLAN_PROMPT, policy.max_prompt_tokens), plan, IMAGE_PROMPT - PLAN + plan


def _bytes(card: Card, share: float) -> float:
    return share * COPY * card.gb_per_s * GB


def _flops(card: Card, share: float) -> float:
    return share * MATMUL * card.tflop_per_s * 1e12


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
