"""Recipe of the tiny HPS expert: a CLIP whose cosine prefers the image that shows the prompt to one with a mistake.

The loss is CLIP's contrastive one in both directions, with wrong images among the candidates, plus the preference of
every prompt between its own right and wrong image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from t2ir1_ray.checkpoints.word_tokenizers import SPECIAL, save_word_tokenizer
from t2ir1_ray.shapes.recipes.expert_samples import prompt_words, right_and_wrong
from t2ir1_ray.shapes.recipes.expert_training import (
    PATCH_SIDE,
    Progress,
    descend,
    folder_bytes,
    halve,
    learning_rates,
    seeded,
    to_pixels,
)
from t2ir1_ray.shapes.world import IMAGE_SIDE

WIDTH = 64
TEXT_LENGTH = 24
STEPS = 1500
PROMPTS_PER_STEP = 48
END = "[EOT]"
"""Closes every text and has the highest id, which is where open_clip's text tower reads its feature."""
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))


def train(out_dir: Path, seed: int = 0, progress: Progress | None = None, steps: int = STEPS) -> dict[str, Any]:
    """Train from scratch (about 120 CPU-seconds), write the folder in open_clip's own layout, return its figures."""
    rng, noise = seeded(seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    words = (*SPECIAL, *prompt_words(), END)
    save_word_tokenizer(out_dir, words, template=f"[CLS] $A {END}")
    (out_dir / "open_clip_config.json").write_text(json.dumps(architecture(len(words)), indent=2) + "\n")
    model = open_clip.create_model(f"local-dir:{out_dir}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out_dir}")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    recent = 0.0
    for step, rate in enumerate(learning_rates(1e-3, steps)):
        prompts, right, wrong = zip(*(right_and_wrong(rng) for _ in range(PROMPTS_PER_STEP)), strict=True)
        pixels = (to_pixels([*right, *wrong], noise) - MEAN) / STD
        with torch.autocast("cpu", torch.bfloat16):
            text = model.encode_text(tokenizer(list(prompts)), normalize=True)
            image = model.encode_image(pixels, normalize=True)
        loss = preference_loss(text.float(), image.float(), model.logit_scale.exp().clamp(max=50))
        descend(optimizer, loss, rate)
        recent = loss.item() if step == 0 else 0.97 * recent + 0.03 * loss.item()
        if progress and (step + 1) % 100 == 0:
            progress(f"hps {step + 1}/{steps} loss {recent:.3f}")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        out_dir / "open_clip_model.safetensors",
    )
    halve(out_dir)
    count = sum(p.numel() for p in model.parameters())
    return {"loss": recent, "steps": steps, "parameters": count, "bytes": folder_bytes(out_dir)}


def architecture(vocabulary: int) -> dict[str, Any]:
    """open_clip_config.json of a CLIP with 0.2 M parameters."""
    return {
        "model_cfg": {
            "embed_dim": WIDTH,
            "vision_cfg": {
                "image_size": IMAGE_SIDE,
                "layers": 3,
                "width": WIDTH,
                "head_width": 16,
                "patch_size": PATCH_SIDE,
                "mlp_ratio": 2.0,
            },
            "text_cfg": {
                "context_length": TEXT_LENGTH,
                "vocab_size": vocabulary,
                "width": WIDTH,
                "heads": 4,
                "layers": 2,
                "mlp_ratio": 2.0,
                "hf_tokenizer_name": "words",  # any name: open_clip then reads the tokenizer from this very folder
            },
        },
        "preprocess_cfg": {},
    }


def preference_loss(text: Tensor, image: Tensor, scale: Tensor) -> Tensor:
    """text: (N, D), image: (2N, D), both normalised; image i is right for text i and image N + i is wrong for it."""
    count = len(text)
    logits, own = scale * text @ image.T, torch.arange(count)
    pair = torch.stack([logits[own, own], logits[own, own + count]], dim=1)
    contrast = cross_entropy(logits, own) + 0.5 * cross_entropy(logits[:, :count].T, own)
    return contrast + cross_entropy(pair, torch.zeros(count, dtype=torch.long))
