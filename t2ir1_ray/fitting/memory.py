"""How much memory each role of a run takes on its GPU: estimates from the policy's shapes, before anything starts.

GB are 1e9 bytes. A part is either sure (allocated whatever the data are) or the most that prompts and plans of the
longest permitted length lead to. What no formula knows, CUDA's context and the allocator's gaps, is an allowance.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import JanusConfig, JanusForConditionalGeneration

from actors.image_decoder import COLUMNS
from actors.image_state import round_up
from t2ir1_ray.config import Config, ExpertConfig
from t2ir1_ray.fitting.inventory import GB
from t2ir1_ray.janus.policy import image_size

CONTEXT_GB = 1.0
"""Allowance for a process on a GPU: CUDA context, cuBLAS and NCCL buffers, gaps between allocations."""
GRAPHS_GB = 1.5
"""Allowance for vLLM: CUDA graphs and its sampler."""
PROCESS_GB = 0.7
"""Of an actor without a GPU: Python with torch and vLLM or DeepSpeed; experts were measured to take half of it."""
BUCKET = 500_000_000
"""Elements of DeepSpeed's reduce bucket at most (`reduce_bucket_size`, see learner/rank.py)."""
LIVE = 1_000_000_000
"""Parameters that ZeRO-3 holds gathered (`stage3_max_live_parameters`), and its `sub_group_size`."""
CHUNK = 1 << 24
"""Logits in float32 at one time, as in learner/logprobs.py; elements of a weight under LoRA as well."""
VQ_BATCH, VQ_MAPS = 64, 5
"""Images that become pixels at once (actors/sampler.py), and feature maps of full size while they do: three on a CPU,
five on an H200 with the convolution's workspace."""

BATCH = {"hps": 0.0042, "git": 0.32, "grounding_dino": 1.25, "orm": 0.0074}
"""Kind of expert -> numbers that one image of a batch takes at most, for each of the model's parameters: peaks of 16
images on an H200 (0.26, 8.2, 13.8 GB in float32, ORM 1.9 in bfloat16)."""


@dataclass(frozen=True)
class Part:
    """One item of a role's memory."""

    name: str
    gb: float
    sure: bool = True  # else the most that lengths permit


@dataclass(frozen=True)
class RoleMemory:
    """What one actor of a role takes. known: False where a checkpoint is not here to be measured."""

    role: str
    actors: int
    gpus: float  # of each actor
    parts: tuple[Part, ...]
    known: bool = True

    @property
    def total(self) -> float:
        return sum(part.gb for part in self.parts)

    @property
    def sure(self) -> float:
        return sum(part.gb for part in self.parts if part.sure)


@dataclass(frozen=True)
class Shapes:
    """Sizes of a Janus policy. Counts are parameters."""

    language: int  # language model with embeddings and head: all that is trained without LoRA
    generation: int  # embeddings, aligner and head of image tokens: frozen, used by every role
    understanding: int  # vision tower and aligner: the reference loads them, nothing uses them
    vq: int
    largest: int  # parameter
    adapted: Mapping[str, int]  # name of a linear layer -> inputs + outputs, summed over layers: LoRA's size per rank
    layers: int
    hidden: int
    intermediate: int
    keys: int  # width of keys, and of values
    vocabulary: int
    codes: int
    image_tokens: int
    image_side: int
    vq_channels: int

    @classmethod
    def of(cls, config: JanusConfig) -> "Shapes":
        """Counted on a model without memory (torch's meta device)."""
        with torch.device("meta"):
            model = JanusForConditionalGeneration(config)
        count: Counter[str] = Counter()
        for name, parameter in model.named_parameters():
            count[name.removeprefix("model.").split(".")[0]] += parameter.numel()
        adapted: Counter[str] = Counter()
        for name, module in model.model.language_model.named_modules():
            if isinstance(module, torch.nn.Linear):
                adapted[name.rsplit(".", 1)[-1]] += module.in_features + module.out_features
        text, vq = config.text_config, config.vq_config
        image_tokens, side = image_size(config)
        return cls(
            language=count["language_model"] + count["lm_head"],
            generation=sum(number for name, number in count.items() if name.startswith("generation_")),
            understanding=count["vision_model"] + count["aligner"],
            vq=count["vqmodel"],
            largest=max(parameter.numel() for parameter in model.parameters()),
            adapted=dict(adapted),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            keys=text.num_key_value_heads * text.head_dim,
            vocabulary=text.vocab_size,
            codes=vq.num_embeddings,
            image_tokens=image_tokens,
            image_side=side,
            vq_channels=vq.base_channels,
        )


def estimate(config: Config, shapes: Shapes, expert_parameters: Mapping[str, int | None]) -> list[RoleMemory]:
    """A row per role of `actors.placement.roles`. expert_parameters: None where they are not known."""
    rollout, learner, reference = config.rollout, config.learner, config.reference
    rows = [
        RoleMemory("learner", learner.ranks, learner.num_gpus, learner_parts(config, shapes)),
        RoleMemory("rollout", rollout.actors, rollout.num_gpus, rollout_parts(config, shapes)),
    ]
    if learner.beta > 0:
        rows.append(RoleMemory("reference", reference.replicas, reference.num_gpus, reference_parts(config, shapes)))
    for name, expert in config.experts.items():
        count = expert_parameters.get(name)
        parts = expert_parts(expert, count or 0, rollout.group_size)
        rows.append(RoleMemory(f"expert-{name}", expert.replicas, expert.num_gpus, parts, known=count is not None))
    return [row if row.gpus else replace(row, parts=_on_cpu(row.parts)) for row in rows]


def trained_parameters(config: Config, shapes: Shapes) -> int:
    """Without LoRA the language model; with LoRA r (inputs + outputs) of every linear layer that has an adapter."""
    rank = config.learner.lora_rank
    if not rank:
        return shapes.language
    return rank * sum(shapes.adapted.get(name, 0) for name in config.learner.lora_targets)


def state_bytes(trained: int, frozen: int, stage: int, ranks: int, dtype: str) -> tuple[float, float, float]:
    """(parameters, gradients, optimizer) of one of N ranks, for P trained and F frozen parameters of w bytes.

    - parameters: w (P + F), with ZeRO-3 w (P + F) / N;
    - gradients, added up in float32: 4 P, from ZeRO-2 on 4 P / N;
    - a float32 master copy and two moments: 12 P / N.

    Agrees with what DeepSpeed 0.19.8 was measured to hold on one rank, in every stage and both dtypes.
    """
    parameters = _width(dtype) * (trained + frozen) / (ranks if stage == 3 else 1)
    gradients = 4 * trained / (ranks if stage >= 2 else 1)
    return parameters, gradients, 12 * trained / ranks


def layer_bytes(shapes: Shapes, width: int) -> tuple[int, int]:
    """Of one decoder layer and one token: (kept for the backward pass, added by that pass at its largest).

    Kept: two RMSNorms (4 + 2 w) H each (2 w H in bfloat16 on a GPU, where they are one kernel), queries and attention's
    output 2 w H, keys and values 2 w K, and the MLP's gate, its SiLU, up and their product 4 w I. Added: the gradients
    of three of the MLP's arrays, 3 w I.
    """
    kept = 2 * (4 + 2 * width) * shapes.hidden + 2 * width * (shapes.hidden + shapes.keys)
    return kept + 4 * width * shapes.intermediate, 3 * width * shapes.intermediate


def head_bytes(shapes: Shapes, width: int, guided: bool, gradient: bool = True) -> int:
    """Logits that one place of a micro-batch costs at most, as if each predicted a token.

    A plan token: w V, twice with the gradient. An image token: as much of C codes. Under guidance an image token is
    two places, whose logits are mixed in float32: 24 C bytes with, 20 C without gradients, half of that per place.
    """
    copies = 2 if gradient else 1
    image = (12 if gradient else 10) * shapes.codes if guided else copies * width * shapes.codes
    return max(copies * width * shapes.vocabulary, image)


def learner_work(config: Config, shapes: Shapes) -> float:
    """Bytes of a micro-batch of T places at its largest, beside state and buffers.

    With gradient checkpointing w T H per layer, and then either one layer recomputed (`layer_bytes`) or the last norm
    (4 + 3 w) T H and the heads (`head_bytes`); without it every layer's arrays, the last norm and the heads. With LoRA
    the merged weight of one layer, w H I, and 2^24 of its elements twice in float32.
    """
    learner, width = config.learner, _width(config.learner.dtype)
    kept, added = layer_bytes(shapes, width)
    last = (4 + 3 * width) * shapes.hidden
    heads = head_bytes(shapes, width, _guided(config))
    if learner.gradient_checkpointing:
        place = width * shapes.hidden * shapes.layers + max(kept + added, last + heads)
    else:
        place = kept * shapes.layers + last + max(added, heads)
    merged = shapes.hidden * shapes.intermediate if learner.lora_rank else 0
    once = width * merged + 2 * 4 * min(CHUNK, merged)
    return place * learner.tokens_per_batch + 3 * 4 * min(CHUNK, learner.tokens_per_batch * shapes.vocabulary) + once


def learner_parts(config: Config, shapes: Shapes) -> tuple[Part, ...]:
    """State (`state_bytes`), DeepSpeed's buffers, and the larger of two peaks that do not meet: the activations of a
    micro-batch (`learner_work`), and the optimizer's step.

    - step: Adam's square root, 4 P / N; with ZeRO-3 also the gradient's flat copy, for 1e9 parameters at a time;
    - buffers: the reduce bucket in float32 and the largest gradient in both dtypes; ZeRO-1 in bfloat16 has no bucket;
      ZeRO-3 has one and its float32 copy, and gathers at most 1e9 parameters (none on one rank).
    """
    learner, ranks = config.learner, config.learner.ranks
    width, stage = _width(learner.dtype), learner.zero_stage
    trained = trained_parameters(config, shapes)
    frozen = shapes.generation + (shapes.language if learner.lora_rank else 0)
    parameters, gradients, optimizer = state_bytes(trained, frozen, stage, ranks, learner.dtype)
    largest, step = min(shapes.largest, trained), 4 * trained / ranks
    if stage == 3:
        gathered = width * min(LIVE, trained + frozen) if ranks > 1 else 0
        buffers = (width + 4) * min(BUCKET, trained) + gathered
        step = 8 * min(LIVE + largest, trained / ranks)
    elif stage == 1 and width == 2:
        buffers = width * largest
    else:
        buffers = 4 * min(BUCKET, trained) + (4 + width) * largest
    work = learner_work(config, shapes)
    return (
        Part("parameters", parameters / GB),
        Part("gradients", gradients / GB),
        Part("optimizer", optimizer / GB),
        Part("buffers", buffers / GB),
        Part("optimizer step", step / GB) if step > work else Part("activations", work / GB, sure=False),
        Part("CUDA", CONTEXT_GB),
    )


def rollout_parts(config: Config, shapes: Shapes) -> tuple[Part, ...]:
    """Weights, the text engine's KV cache, and what decoding the images of one call takes.

    - weights: w (language model + generation modules), and the VQ model in float32;
    - image KV cache: 2 w K per layer, row and column; rows: prompts_per_call x group_size images (max_sequences in
      evaluations), twice under guidance; columns: the image's tokens for sure, prompt and plan before them, rounded up
      as the decoder does, which keeps the memory;
    - pixels: of 64 images at a time, `VQ_MAPS` float32 maps of the full size and the VQ model's base width;
    - prefill, not at the same time: w (3 I + 3 H) for every token of the images' prompts and plans; unconditional rows
      share one.
    """
    rollout, width = config.rollout, _width(config.policy.dtype)
    images = rollout.prompts_per_call * rollout.group_size
    if config.eval.every:
        images = max(images, rollout.max_sequences)
    rows = images * (2 if rollout.guidance != 1 else 1)
    column = 2 * width * shapes.keys * shapes.layers * rows
    before = config.policy.max_prompt_tokens + config.policy.max_plan_tokens
    sure = round_up(1 + shapes.image_tokens, COLUMNS)
    more = round_up(before + shapes.image_tokens, COLUMNS) - sure
    prefill = (images + 1) * width * 3 * (shapes.intermediate + shapes.hidden) * before
    pixels = min(VQ_BATCH, images) * shapes.image_side**2 * shapes.vq_channels * 4 * VQ_MAPS
    return (
        Part("weights", (width * (shapes.language + shapes.generation) + 4 * shapes.vq) / GB),
        Part("KV cache", rollout.kv_cache_gb * 2**30 / GB),
        Part("image KV cache", column * sure / GB),
        Part("pixels", pixels / GB),
        Part("long prompts", (column * more + max(prefill - pixels, 0)) / GB, sure=False),
        Part("CUDA, graphs", CONTEXT_GB + GRAPHS_GB),
    )


def reference_parts(config: Config, shapes: Shapes) -> tuple[Part, ...]:
    """The whole model in the policy's dtype, and a micro-batch without gradients: w (3 I + 2 H) + 8 H per place for a
    layer, or 8 H and the heads."""
    width, places = _width(config.policy.dtype), config.reference.tokens_per_batch
    weights = width * (shapes.language + shapes.generation + shapes.understanding + shapes.vq)
    layer = width * (3 * shapes.intermediate + 2 * shapes.hidden)
    heads = head_bytes(shapes, width, _guided(config), gradient=False)
    work = (max(layer, heads) + 8 * shapes.hidden) * places + 3 * 4 * min(CHUNK, places * shapes.vocabulary)
    return (
        Part("weights", weights / GB),
        Part("activations", work / GB, sure=False),
        Part("CUDA", CONTEXT_GB),
    )


def expert_parts(expert: ExpertConfig, parameters: int, group_size: int) -> tuple[Part, ...]:
    """Weights, and a batch of images where it is known what one takes (`BATCH`); a call scores one group."""
    width, images = _width(expert.dtype), min(expert.batch_size, group_size)
    batch = (Part("batch", BATCH[expert.kind] * images * parameters * width / GB),) if expert.kind in BATCH else ()
    return (Part("weights", parameters * width / GB), *batch, Part("CUDA", CONTEXT_GB))


def published_bytes(config: Config, shapes: Shapes) -> int:
    """Of one policy version in the object store: what training changes, in the learner's dtype. Adapters are merged,
    so that LoRA saves the embeddings and the head only."""
    width = _width(config.learner.dtype)
    return width * (shapes.language - (2 * shapes.vocabulary * shapes.hidden if config.learner.lora_rank else 0))


def checkpoint_bytes(config: Config, shapes: Shapes) -> int:
    """Of one checkpoint: the policy in bfloat16, a float32 master copy and two moments of what is trained, and in ZeRO
    1 and 2 that once more in the learner's dtype."""
    whole = shapes.language + shapes.generation + shapes.understanding + shapes.vq
    module = 0 if config.learner.zero_stage == 3 else _width(config.learner.dtype)
    return 2 * whole + (12 + module) * trained_parameters(config, shapes)


def table(rows: Sequence[RoleMemory], seconds: Mapping[str, float] | None = None) -> str:
    """One line per role: GB of one actor at most, and its parts. seconds: of work in a step, by role, if known."""
    clock = f"{'s a step':>10}" if seconds else ""
    lines = [f"{'role':<24}{'actors':>7}{'GPU each':>10}{'GB each':>9}{clock}  of which"]
    for row in rows:
        parts = ", ".join(f"{part.name} {part.gb:.1f}" for part in row.parts if part.gb >= 0.05)
        total = f"{row.total:.1f}" if row.known else "?"
        took = seconds.get(row.role) if seconds else None
        clock = f"{'?' if took is None else f'{took:.1f}':>10}" if seconds else ""
        of = parts if row.known else "not here"
        lines.append(f"{row.role:<24}{row.actors:>7}{row.gpus:>10g}{total:>9}{clock}  {of}")
    return "\n".join(lines)


def amount(gb: float) -> str:
    if gb >= 999.5:
        return f"{gb / 1000:.3g} TB"
    return f"{gb:.3g} GB" if gb >= 0.1 else f"{1000 * gb:.3g} MB"


def _on_cpu(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return (*(part for part in parts if not part.name.startswith("CUDA")), Part("process", PROCESS_GB))


def _guided(config: Config) -> bool:
    return config.learner.image_logprobs == "guided" and config.rollout.guidance != 1


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2
