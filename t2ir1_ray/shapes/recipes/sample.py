"""Sampling the shapes policy with plain transformers: slow, obvious, and independent of the training system."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from t2ir1_ray.janus.policy import PromptFormat
from t2ir1_ray.shapes.recipes.train_vq import decode
from t2ir1_ray.shapes.verify import image_follows_plan, verify_image, verify_plan


class Samples(NamedTuple):
    """One plan and one image per prompt."""

    plans: list[str | None]  # None: drawn without a plan
    pixels: np.ndarray  # (N, 24, 24, 3) uint8


@torch.inference_mode()
def sample(
    model: JanusForConditionalGeneration,
    form: PromptFormat,
    prompts: Sequence[str],
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 128,
    planned: bool = True,
) -> Samples:
    """A plan (unless not `planned`), then an image, for every prompt; no guidance, full vocabulary.

    `temperature=0`: greedy.
    """
    generator = torch.Generator().manual_seed(seed)
    plans, codes = [], []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        texts: list[str | None] = [None] * len(part)
        if planned:
            ids = _continue(model, [form.plan_prompt_ids(p) for p in part], 40, temperature, generator, form.eos_id)
            texts = [form.plan_text(row) for row in ids]
        image_prompts = [form.image_prompt_ids(p, t) for p, t in zip(part, texts, strict=True)]
        codes.append(torch.tensor(_continue(model, image_prompts, 36, temperature, generator, None)))
        plans += texts
    return Samples(plans, decode(model.model.vqmodel, torch.cat(codes)))


def _continue(
    model: JanusForConditionalGeneration,
    prompts: list[list[int]],
    length: int,
    temperature: float,
    generator: torch.Generator,
    eos_id: int | None,
) -> list[list[int]]:
    """Up to `length` tokens for left-padded prompts: plan tokens if there is an end token, else image tokens."""
    width = max(map(len, prompts))
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    embeddings, cache = model.get_input_embeddings()(ids), None
    tokens: list[Tensor] = []
    for _ in range(length):
        position = (mask.cumsum(1) - 1).clamp_min(0)[:, -embeddings.shape[1] :]
        out = model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        cache, hidden = out.past_key_values, out.last_hidden_state[:, -1]
        logits = model.lm_head(hidden) if eos_id is not None else model.model.generation_head(hidden)
        if temperature:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            token = logits.argmax(-1, keepdim=True)
        tokens.append(token)
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        if eos_id is not None:
            embeddings = model.get_input_embeddings()(token)
        else:
            embeddings = model.prepare_embeddings_for_image_generation(token[:, 0])[:, None]
    rows = torch.cat(tokens, 1).tolist()
    return [row[: row.index(eos_id) + 1] if eos_id in row else row for row in rows]


def accuracy(prompts: Sequence[str], samples: Samples) -> dict[str, float]:
    """Shares of right images and, where there are plans, of right plans and of images that follow their plan."""
    rows = list(zip(prompts, samples.plans, samples.pixels, strict=True))
    right = {"accuracy": float(np.mean([verify_image(prompt, pixels) for prompt, _, pixels in rows]))}
    if None in samples.plans:
        return right
    return {
        **right,
        "plan": float(np.mean([verify_plan(prompt, plan) for prompt, plan, _ in rows])),
        "follows": float(np.mean([image_follows_plan(plan, pixels) for _, plan, pixels in rows])),
    }
