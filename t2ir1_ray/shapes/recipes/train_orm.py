"""Recipe of the tiny ORM expert: a LLaVA-OneVision model that says whether an image represents its prompt.

It starts with questions about single objects ("is there a red ring", "how many red rings") and is given whole prompts
bit by bit. Two auxiliary losses make it learn at this size: the attributes of every image patch, and at the end of
every noun phrase of a prompt the number of such objects.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from t2ir1_ray.checkpoints.word_tokenizers import SPECIAL, save_word_tokenizer
from t2ir1_ray.shapes.prompts import plural
from t2ir1_ray.shapes.recipes.expert_samples import judged_sample, prompt_words
from t2ir1_ray.shapes.recipes.expert_training import (
    ATTRIBUTE_SIZES,
    PATCH_SIDE,
    PATCHES_PER_SIDE,
    Phrase,
    Progress,
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
from t2ir1_ray.shapes.world import COLORS, IMAGE_SIDE, SHAPES, TEXTURES, Scene

TEMPLATE = "{image} {prompt} ?"
"""A short question instead of the official conversation, which costs twice as much at this size."""
COUNT_WORDS = ("zero", "one", "two", "three", "four")
IMAGE_TOKEN = "<image>"
WIDTH = 64
VISION_LAYERS = 2
TEXT_LAYERS = 3
STEPS = 2000
IMAGES_PER_STEP = 64
JUDGED_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Question:
    """One training row: an image, what can be read in it, the text for the template, and the right answer."""

    image: Any  # (24, 24, 3) uint8
    scene: Scene
    text: str
    answer: str


def train(out_dir: Path, seed: int = 0, progress: Progress | None = None, steps: int = STEPS) -> dict[str, Any]:
    """Train from scratch (about 250 CPU-seconds), write the checkpoint folder, return its figures."""
    rng, noise = seeded(seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    spoken = ("is", "there", "how", "many", *COUNT_WORDS, *TEXTURES, *COLORS, *SHAPES, *prompt_words())
    words = tuple(dict.fromkeys((*SPECIAL, IMAGE_TOKEN, "yes", "no", "?", *spoken)))
    tokenizer = save_word_tokenizer(out_dir, words, template="$A")
    model = build_model(tokenizer)
    attribute_head, count_head = nn.Linear(WIDTH, sum(ATTRIBUTE_SIZES)), nn.Linear(WIDTH, len(COUNT_WORDS))
    features: dict[str, Tensor] = {}
    model.model.vision_tower.register_forward_hook(lambda _m, _i, out: features.update(patches=out.last_hidden_state))
    parameters = [*model.parameters(), *attribute_head.parameters(), *count_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, betas=(0.9, 0.98))
    recent = 0.0
    for step, rate in enumerate(learning_rates(2e-3, steps, warmup=60, hold=0.55, floor=0.02)):
        done = step / steps
        judged = JUDGED_SHARE * min(1.0, max(0.0, 5 * (done - 0.05)))
        questions = [
            judge_question(rng) if rng.random() < judged else object_question(rng, difficulty=min(1.0, 1.5 * done))
            for _ in range(IMAGES_PER_STEP)
        ]
        pixels = to_pixels([question.image for question in questions], noise) * 2 - 1
        hidden, text_start = run(model, tokenizer, pixels, [question.text for question in questions])
        answers = torch.tensor(tokenizer.convert_tokens_to_ids([question.answer for question in questions]))
        loss = cross_entropy(model.lm_head(hidden[:, -1]), answers)
        labels = attribute_labels([question.scene for question in questions])
        patches = attribute_loss(attribute_head(features["patches"]), labels)
        counting = count_loss(count_head, hidden, text_start, questions)
        descend(optimizer, loss + 0.3 * patches + 0.5 * counting, rate)
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if progress and (step + 1) % 100 == 0:
            progress(f"orm {step + 1}/{steps} loss {recent:.3f} patches {patches:.3f} counts {counting:.3f}")
    model.eval().save_pretrained(out_dir)
    halve(out_dir)
    count = sum(p.numel() for p in model.parameters())
    return {"loss": recent, "steps": steps, "parameters": count, "bytes": folder_bytes(out_dir)}


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision of 0.2 M parameters, initialised by fan-in, residual branches damped by depth."""
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH_SIDE,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer) + 1,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_index=len(tokenizer),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        image_grid_pinpoints=[[IMAGE_SIDE, IMAGE_SIDE]],
    )
    config.question_template = TEMPLATE
    model = LlavaOnevisionForConditionalGeneration(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            damping = 1.0
            if name.endswith(("o_proj", "down_proj")):
                damping = (2 * TEXT_LAYERS) ** -0.5
            elif name.endswith(("out_proj", "fc2")):
                damping = (2 * VISION_LAYERS) ** -0.5
            nn.init.normal_(module.weight, std=module.in_features**-0.5 * damping)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(module.in_channels * PATCH_SIDE**2) ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=WIDTH**-0.5 if "language" in name else 0.3)
    return model


# --- questions ------------------------------------------------------------------------------------------------------


def judge_question(rng: random.Random) -> Question:
    """A prompt with an image that may be wrong; the exact verifier knows the answer."""
    sample = judged_sample(rng)
    return Question(sample.image, sample.scene, sample.prompt, "yes" if sample.correct else "no")


def object_question(rng: random.Random, difficulty: float) -> Question:
    """A question about one kind of object in a random scene. difficulty: 0..1, from single words to near misses."""
    hard = rng.random() < 0.2 + 3 * difficulty
    image, scene = picture(crowded_scene(rng, (1, 2, 2, 3, 3, 4) if hard else (1, 1, 2)), rng, 0.15 * difficulty)
    around = scene or crowded_scene(rng, (1, 2))
    kind = rng.random()
    if kind < 0.3:
        phrase = phrase_of(rng.choice(around), rng, 0.0) if rng.random() < 0.8 else near_miss(around, rng)
        number = sum(matches(phrase, item) for item in scene)
        return Question(image, scene, f"how many {plural(words_of(phrase))}", COUNT_WORDS[number])
    if kind < 0.3 + 0.35 * max(0.0, 1 - 2.5 * difficulty):
        word = rng.choice((*COLORS, *SHAPES))
        seen = any(word in (item.color, item.shape) for item in scene)
        return Question(image, scene, f"is there a {word}", "yes" if seen else "no")
    phrase = phrase_of(rng.choice(around), rng) if rng.random() < 0.45 else near_miss(around, rng)
    seen = any(matches(phrase, item) for item in scene)
    return Question(image, scene, f"is there a {words_of(phrase)}", "yes" if seen else "no")


def noun_phrases(text: str) -> list[tuple[int, Phrase]]:
    """(index of its last word, phrase) for every object that the text names, singular or plural."""
    words, found = text.split(), []
    for index, word in enumerate(words):
        shape = next((shape for shape in SHAPES if word in (shape, plural(shape))), None)
        if shape is None:
            continue
        color = words[index - 1] if index and words[index - 1] in COLORS else None
        before = index - 1 - (color is not None)
        texture = words[before] if before >= 0 and words[before] in TEXTURES else None
        found.append((index, (texture, color, shape)))
    return found


# --- forward pass ---------------------------------------------------------------------------------------------------


def run(
    model: LlavaOnevisionForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pixels: Tensor, texts: list[str]
) -> tuple[Tensor, list[int]]:
    """Hidden states (N, L, WIDTH) of left-padded rows "image text ?", and the position where each text starts."""
    image = [tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)] * (PATCHES_PER_SIDE**2 + 1)
    rows = [torch.tensor(image + ids) for ids in tokenizer([f"{text} ?" for text in texts]).input_ids]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side="left")
    output = model.model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        pixel_values=pixels[:, None],
        image_sizes=torch.tensor([[IMAGE_SIDE, IMAGE_SIDE]] * len(texts)),
        batch_num_images=[len(texts) + 1],
        use_cache=False,
    )
    length = input_ids.shape[1]
    return output.last_hidden_state, [length - len(row) + len(image) for row in rows]


def count_loss(head: nn.Module, hidden: Tensor, text_start: list[int], questions: list[Question]) -> Tensor:
    """Cross-entropy of the number of matching objects, read off where each noun phrase of the text ends."""
    places, counts = [], []
    for row, question in enumerate(questions):
        for index, phrase in noun_phrases(question.text):
            places.append((row, text_start[row] + index))
            counts.append(sum(matches(phrase, item) for item in question.scene))
    if not places:
        return hidden.new_zeros(())
    rows, positions = torch.tensor(places).T
    return cross_entropy(head(hidden[rows, positions]), torch.tensor(counts).clamp(max=len(COUNT_WORDS) - 1))
