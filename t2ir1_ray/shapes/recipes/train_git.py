"""Recipe of the tiny GIT expert: it answers "striped blue ring?" with yes or no, as `rewards.git` asks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, PreTrainedTokenizerFast

from t2ir1_ray.checkpoints.word_tokenizers import SPECIAL, save_word_tokenizer
from t2ir1_ray.shapes.recipes.expert_training import (
    ATTRIBUTE_SIZES,
    PATCH_SIDE,
    Phrase,
    Progress,
    Scene,
    attribute_labels,
    attribute_loss,
    crowded_scene,
    descend,
    folder_bytes,
    halve,
    learning_rates,
    matches,
    near_miss,
    phrase_of,
    picture,
    seeded,
    to_pixels,
    words_of,
)
from t2ir1_ray.shapes.world import CELLS, COLORS, IMAGE_SIDE, SHAPES, TEXTURES

WORDS = (*SPECIAL, "yes", "no", "?", *TEXTURES[1:], *COLORS, *SHAPES)
WIDTH = 64
LAYERS = 3
STEPS = 1500
IMAGES_PER_STEP = 32
QUESTIONS_PER_IMAGE = 3
ATTRIBUTE_WEIGHT = 0.5
AGREEMENT_WEIGHT = 2.0


def train(out_dir: Path, seed: int = 0, progress: Progress | None = None, steps: int = STEPS) -> dict[str, Any]:
    """Train from scratch (about 150 CPU-seconds), write the checkpoint folder, return its figures.

    The loss is the cross-entropy between "yes" and "no" at the answer's position. Two auxiliary tasks make it
    learn in time: the attributes of every image patch, and, read off the answer's position, which cells agree with the
    question.
    """
    rng, noise = seeded(seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = save_word_tokenizer(out_dir, WORDS)
    model = build_model(tokenizer)
    attribute_head, agreement_head = nn.Linear(WIDTH, sum(ATTRIBUTE_SIZES)), nn.Linear(WIDTH, 4 * len(CELLS))
    features: dict[str, Tensor] = {}
    model.git.image_encoder.register_forward_hook(
        lambda _m, _i, out: features.update(patches=out.last_hidden_state[:, 1:])
    )
    parameters = [*model.parameters(), *attribute_head.parameters(), *agreement_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, betas=(0.9, 0.98))
    yes_no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    recent = 0.0
    for step, rate in enumerate(learning_rates(2e-3, steps)):
        pixels, labels, questions = batch(rng, noise, difficulty=min(1.0, 2.5 * step / steps))
        states = answer_states(model, tokenizer, pixels, [question.text for question in questions])
        answers = torch.tensor([question.answer for question in questions])
        loss = cross_entropy(model.output(states)[:, yes_no], (~answers).long())
        patches = attribute_loss(attribute_head(features["patches"]), labels)
        agreement = torch.stack([question.agreement for question in questions])
        cells = binary_cross_entropy_with_logits(agreement_head(states), agreement)
        descend(optimizer, loss + ATTRIBUTE_WEIGHT * patches + AGREEMENT_WEIGHT * cells, rate)
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if progress and (step + 1) % 100 == 0:
            progress(f"git {step + 1}/{steps} loss {recent:.3f} patches {patches:.3f} cells {cells:.3f}")
    accuracy = held_accuracy(model, tokenizer, random.Random(seed + 1))
    model.save_pretrained(out_dir)
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIDE},
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(out_dir)
    halve(out_dir)
    count = sum(p.numel() for p in model.parameters())
    return {"question_accuracy": accuracy, "steps": steps, "parameters": count, "bytes": folder_bytes(out_dir)}


def build_model(tokenizer: PreTrainedTokenizerFast) -> GitForCausalLM:
    """A GIT of 0.2 M parameters, initialised by fan-in: transformers' small weights would make it learn far slower."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
    }
    config = GitConfig(
        vision_config={**tower, "image_size": IMAGE_SIDE, "patch_size": PATCH_SIDE},
        **tower,
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GitForCausalLM(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "output":
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(module.in_channels * PATCH_SIDE**2) ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
    return model


@dataclass(frozen=True, slots=True)
class Question:
    """text: "striped blue ring?". answer: whether it is there. agreement: (4 * 9,) float, what `agreement_of` says."""

    text: str
    answer: bool
    agreement: Tensor


def batch(
    rng: random.Random, noise: torch.Generator, difficulty: float, images: int = IMAGES_PER_STEP
) -> tuple[Tensor, Tensor, list[Question]]:
    """(pixels, patch labels, questions); questions go question-major: number r is about image r % images.

    difficulty: 0..1. It raises the number of objects, scrambles more images and drops the questions about one word.
    """
    counts = [(1, 2, 2, 3, 3, 4) if rng.random() < 0.2 + difficulty else (1, 1, 2) for _ in range(images)]
    shown = [picture(crowded_scene(rng, count), rng, scrambled=0.2 * difficulty) for count in counts]
    scenes = [scene for _, scene in shown]
    asked = [
        color_question(scene, rng) if rng.random() < 0.4 * (1 - difficulty) else object_question(scene, rng)
        for _ in range(QUESTIONS_PER_IMAGE)
        for scene in scenes
    ]
    return to_pixels([image for image, _ in shown], noise) * 2 - 1, attribute_labels(scenes), asked


def object_question(scene: Scene, rng: random.Random) -> Question:
    """A question whose answer is about as often yes as no."""
    around = scene or crowded_scene(rng, (1, 2))  # scrambling can leave nothing that can be read
    phrase = phrase_of(rng.choice(around), rng) if rng.random() < 0.45 else near_miss(around, rng)
    answer = any(matches(phrase, item) for item in scene)
    return Question(f"{words_of(phrase)}?", answer, agreement_of(phrase, scene))


def color_question(scene: Scene, rng: random.Random) -> Question:
    """ "red?" and whether anything is red: the first thing that is learned, never asked later."""
    present = [item.color for item in scene]
    color = rng.choice(present) if present and rng.random() < 0.4 else rng.choice(tuple(COLORS))
    return Question(f"{color}?", color in present, agreement_of((None, color, ""), scene))


def agreement_of(phrase: Phrase, scene: Scene) -> Tensor:
    """(4 * 9,) float: for every cell whether its object has the texture, the colour, the shape, all of the phrase."""
    agreement = torch.zeros(4, len(CELLS))
    texture, color, shape = phrase
    for item in scene:
        parts = (item.texture == (texture or "solid"), color in (None, item.color), item.shape == shape)
        agreement[:, CELLS.index(item.cell)] = torch.tensor([*parts, all(parts)], dtype=torch.float32)
    return agreement.flatten()


def answer_states(
    model: GitForCausalLM, tokenizer: PreTrainedTokenizerFast, pixels: Tensor, questions: list[str]
) -> Tensor:
    """(R, WIDTH) hidden state after each question; question r is about image r % N."""
    texts = [f"[CLS] {text}" for text in questions]
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    hidden = model.git(
        pixel_values=pixels, input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False
    ).last_hidden_state
    first_word = hidden.shape[1] - encoded.input_ids.shape[1]
    return hidden[torch.arange(len(questions)), first_word + encoded.attention_mask.sum(1) - 1]


@torch.no_grad()
def held_accuracy(model: GitForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> float:
    """Share of right answers on fresh scenes."""
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    pixels, _, questions = batch(rng, torch.Generator().manual_seed(0), difficulty=1.0, images=300)
    logits = model.output(answer_states(model.eval(), tokenizer, pixels, [question.text for question in questions]))
    answers = torch.tensor([question.answer for question in questions])
    return ((logits[:, yes] > logits[:, no]) == answers).float().mean().item()
