"""The learner's forward and backward pass at the width of Janus-Pro-7B: rate, memory, attention kernels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import JanusForConditionalGeneration

from learner.logprobs import sequence_logprobs
from learner.packing import MicroBatch, Sequences, micro_batches
from t2ir1_ray.config import Config
from t2ir1_ray.fitting.memory import Shapes, learner_work
from t2ir1_ray.janus.policy import freeze
from tests.gpu.measure import DEVICE, GB, bounded, clock, peak_gb, seconds
from tests.gpu.models import Size, janus_config, random_janus
from tests.gpu.profile import attention_operators
from tests.tiny_janus import tiny_config


@dataclass(frozen=True)
class Lengths:
    """Tokens: of a micro-batch, of an image, of its prompt, of a plan's prompt, of a plan; of small batches."""

    batch: int
    image: int
    image_prompt: int
    plan_prompt: int
    plan: int
    small_batch: int


WIDTH = Size(4096, 8, 11008)
REAL = Lengths(batch=16384, image=576, image_prompt=90, plan_prompt=160, plan=80, small_batch=4096)
TINY = Lengths(batch=240, image=36, image_prompt=12, plan_prompt=10, plan=6, small_batch=100)
BRANCHES = 8  # plans of a prompt


def figures(tiny: bool) -> Iterator[dict[str, object]]:
    lengths = TINY if tiny else REAL
    janus = random_janus(None if tiny else WIDTH, torch.bfloat16)
    janus.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    freeze(janus)
    janus.train()
    yield {"what": "default", "cudnn_sdp": torch.backends.cuda.cudnn_sdp_enabled()}
    torch.backends.cuda.enable_cudnn_sdp(False)
    config = Config()
    config.learner.tokens_per_batch = lengths.batch
    formula = learner_work(config, Shapes.of(tiny_config(kv_heads=2) if tiny else janus_config(WIDTH))) / GB
    for kind, make in {"images": _images, "plans": _plans}.items():
        batch = make(lengths, lengths.batch, 0).to(DEVICE)
        update = _update(janus, batch)
        update()  # gradients exist from now on
        peak = peak_gb(update)
        taken = clock(update, repeats=3, warmup=0)
        flop = _flop(janus, batch)
        yield {
            "what": "forward and backward",
            "batch": kind,
            "rows_and_columns": list(batch.text_ids.shape),
            **bounded(taken, flop=flop),
            "TFLOP_per_s": round(flop / taken / 1e12, 2),
            "tokens_per_s": round(batch.text_ids.numel() / taken),
            "peak_GB": peak,
            "formula_GB": formula,
        }
    extra = 1
    for cudnn in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for kind, make in {"images": _images, "plans": _plans}.items():
            calls = []
            for _ in range(3):  # shapes that nothing has seen
                update = _update(janus, make(lengths, lengths.small_batch, extra).to(DEVICE))
                calls.append([round(seconds(update), 4), round(seconds(update), 4)])
                extra += 1
            operators = attention_operators(update)
            yield {"what": "new shapes", "cudnn_sdp": cudnn, "batch": kind, "first_second_s": calls, "ran": operators}


def _update(janus: JanusForConditionalGeneration, batch: MicroBatch) -> Callable[[], None]:
    return lambda: sequence_logprobs(janus, batch).logprobs.sum().backward()


def _images(lengths: Lengths, budget: int, extra: int) -> MicroBatch:
    """Rows of one image each; `extra` lengthens their prompts."""
    count = budget // (lengths.image_prompt + lengths.image)
    images = np.random.default_rng(extra).integers(0, 60, (count, lengths.image)).astype(np.int32)
    prompts = _ids(count, lengths.image_prompt + extra)
    return micro_batches(Sequences(prompts, [np.empty(0, np.int32)] * count, prompts, images), budget)[0]


def _plans(lengths: Lengths, budget: int, extra: int) -> MicroBatch:
    """Rows of a prompt and its plans, which take an attention mask."""
    prompts = max(1, budget // (lengths.plan_prompt + extra + BRANCHES * (lengths.plan - 1)))
    shared = [prompt for prompt in _ids(prompts, lengths.plan_prompt + extra) for _ in range(BRANCHES)]
    plans = _ids(len(shared), lengths.plan)
    nothing = np.empty((len(shared), 0), np.int32)
    return micro_batches(Sequences(shared, plans, shared, nothing), budget)[0]


def _ids(count: int, length: int) -> list[np.ndarray]:
    return list(np.random.default_rng(length).integers(7, 60, (count, length)).astype(np.int32))


def _flop(janus: JanusForConditionalGeneration, batch: MicroBatch) -> float:
    """Forward once and again in the backward pass, which costs twice as much; heads without recomputation.

    Attention as if causal, half of the square.
    """
    language = janus.model.language_model
    rows, columns = batch.text_ids.shape
    layers = sum(parameter.numel() for parameter in language.layers.parameters())
    attention = 2 * len(language.layers) * language.config.hidden_size * rows * columns**2
    heads = sum(parameter.numel() for parameter in janus.model.generation_head.parameters()) * len(batch.image_ids)
    heads += janus.lm_head.weight.numel() * len(batch.semantic_ids)
    return 4 * (2 * layers * rows * columns + attention) + 6 * heads
