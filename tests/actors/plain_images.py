"""Greedy images by transformers alone, slow and plain: what the image decoder must equal."""

from collections.abc import Sequence

import torch
from transformers import JanusForConditionalGeneration

from tests.tiny_janus import IMAGE_TOKENS

BOS, EOS, PAD, BOI = 0, 1, 2, 4
LONG = [BOS, *([7, 8, 12, 13, 16, 10] * 7)]  # longer than a block of the KV cache, so that its prefix is cached
PROMPTS = [[BOS, 7, 8, 12, 13, 16, 9, 8], [BOS, 7, 8, 12, 9, 8], LONG, [BOS, 7, 8, 9, 8, 11, 12]]


def image_prompts() -> list[list[int]]:
    return [[*prompt, BOI] for prompt in PROMPTS]


def unconditional(prompt: Sequence[int]) -> list[int]:
    return [prompt[0], *[PAD] * (len(prompt) - 2), prompt[-1]]


@torch.inference_mode()
def greedy_image(model: JanusForConditionalGeneration, prompt: Sequence[int], guidance: float) -> list[int]:
    """Greedy guided image tokens by transformers: one image, no cache, the whole sequence again for every token."""
    rows = torch.tensor([prompt, unconditional(prompt)])
    ids: list[int] = []
    for _ in range(IMAGE_TOKENS):
        embeds = model.get_input_embeddings()(rows)
        if ids:
            image = model.prepare_embeddings_for_image_generation(torch.tensor([ids, ids]))
            embeds = torch.cat([embeds, image], 1)
        hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state[:, -1]
        conditional, free = model.model.generation_head(hidden)
        ids.append(int((free + guidance * (conditional - free)).argmax()))
    return ids
