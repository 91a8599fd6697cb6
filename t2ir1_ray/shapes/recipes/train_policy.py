"""Recipe of the shapes base policy: a tiny Janus taught to plan and to draw, imperfectly, so that RL has work to do.

Where a habit applies (see `habits`), a lesson has it with probability `habits.SHARE` and is right otherwise; elsewhere
plans are wrong with probability PLAN_MISTAKES, and images differ from their plan with probability IMAGE_MISTAKES. One
image prompt in ten is the unconditional row of guidance, and one in ten has no plan (a baseline without semantic-CoT).
Questions about images (see `looking`) are mixed in, so that what this training does to understanding can be measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.modeling_janus import JanusVQVAE

from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.janus.policy import PromptFormat
from t2ir1_ray.shapes.prompts import TASK_TYPES, sample_requirement, sample_scene, sentence
from t2ir1_ray.shapes.recipes.corrupt import corrupt
from t2ir1_ray.shapes.recipes.habits import SHARE, drawing_habit, plan_habit
from t2ir1_ray.shapes.recipes.looking import attribute_head, looking_loss, looks
from t2ir1_ray.shapes.recipes.tokenizer import VOCABULARY_SIZE, policy_processor, policy_tokenizer
from t2ir1_ray.shapes.recipes.train_vq import encode, vq_config
from t2ir1_ray.shapes.world import IMAGE_SIDE, Scene, render, write_plan

HIDDEN, LAYERS, HEADS = 128, 4, 4
STEPS = 3_000
BATCH = 16
PEAK_RATE, PEAK_MUON = 2e-3, 6e-3
LOOKS = 5
"""Conversations about an image beside every BATCH of planning and drawing."""
PLAN_MISTAKES, IMAGE_MISTAKES = 0.1, 0.07
UNCONDITIONAL, WITHOUT_PLAN = 0.1, 0.1


class Example(NamedTuple):
    """Token ids of one lesson."""

    plan_prompt: list[int]
    plan: list[int]
    image_prompt: list[int]
    codes: Tensor  # (36,) int64


def train_policy(
    vq: JanusVQVAE, out: Path, seed: int = 0, progress: Callable[[str], None] | None = None, steps: int = STEPS
) -> None:
    """Train from scratch, with fresh lessons at every step (10 CPU-minutes), and write a Janus folder in float16."""
    torch.manual_seed(seed)
    rng = random.Random(seed + 1)
    tokenizer = policy_tokenizer()
    form = PromptFormat(tokenizer, PolicyConfig(path=""))
    model = build_model(tokenizer, vq)
    head = attribute_head(model)
    trained = [parameter for module in (model, head) for parameter in module.parameters() if parameter.requires_grad]
    optimizers = build_optimizers(model, trained)
    for step in range(steps):
        batch = lessons(form, vq, rng, BATCH)
        asked = looks(tokenizer, rng, LOOKS, model.config.vision_config.num_image_tokens)
        loss = plan_loss(model, batch) + image_loss(model, batch) + looking_loss(model, head, asked)
        rise, fall = min(1.0, (step + 1) / 40), min(1.0, max(0.03, (steps - step) / (0.5 * steps)))
        for parameter in trained:
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rise * fall
            optimizer.step()
        if progress and (step + 1) % 100 == 0:
            progress(f"policy {step + 1}/{steps} loss {loss.item():.3f}")
    write_policy(model.eval(), out)


def build_optimizers(model: nn.Module, trained: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the language model's layers, which needs about half the steps; AdamW for the rest."""
    layers = dict(model.model.language_model.layers.named_parameters())
    matrices = [parameter for parameter in layers.values() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in trained if id(parameter) not in chosen]
    return [
        torch.optim.AdamW([{"params": others, "peak": PEAK_RATE}], betas=(0.9, 0.95), weight_decay=0.01),
        torch.optim.Muon([{"params": matrices, "peak": PEAK_MUON}], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]


def build_model(tokenizer: PreTrainedTokenizerFast, vq: JanusVQVAE) -> JanusForConditionalGeneration:
    """Fresh weights around a trained VQ model. transformers' initial spread of 0.02 would silence the gen_aligner."""
    text = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=24,
        patch_size=4,
        mlp_ratio=2.0,
        projection_dim=HIDDEN,
        num_image_tokens=36,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image_placeholder>")
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq_config(HIDDEN),
        image_token_id=image_token,
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            scale = (2 * LAYERS) ** -0.5 if name.endswith(("o_proj", "down_proj")) else 1.0
            nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
    nn.init.normal_(model.get_input_embeddings().weight, std=HIDDEN**-0.5)
    model.model.vqmodel.load_state_dict(vq.state_dict())
    model.model.vqmodel.requires_grad_(False)
    model.model.generation_embeddings.weight.data.copy_(vq.quantize.embedding.weight)
    return model


def lessons(form: PromptFormat, vq: JanusVQVAE, rng: random.Random, count: int) -> list[Example]:
    """`count` training prompts with a plan and an image each, mistakes included."""
    drafts, images = [], []
    for index in range(count):
        requirement = sample_requirement(rng, TASK_TYPES[index % len(TASK_TYPES)], held_out=False)
        right = sample_scene(requirement, rng)
        planned = usual(right, plan_habit(requirement, right), PLAN_MISTAKES, rng)
        images.append(render(usual(planned, drawing_habit(planned), IMAGE_MISTAKES, rng)))
        prompt, plan = sentence(requirement), write_plan(planned)
        image_prompt = form.image_prompt_ids(prompt, None if rng.random() < WITHOUT_PLAN else plan)
        if rng.random() < UNCONDITIONAL:
            image_prompt = form.unconditional_ids(image_prompt)
        plan_ids = form.tokenizer(plan, add_special_tokens=False)["input_ids"]
        drafts.append((form.plan_prompt_ids(prompt), [*plan_ids, form.eos_id], image_prompt))
    codes = encode(vq, images)
    return [Example(*draft, codes[index]) for index, draft in enumerate(drafts)]


def usual(scene: Scene, habit: tuple[str, Scene] | None, mistakes: float, rng: random.Random) -> Scene:
    """What the base makes of a scene: its habit or the scene itself; where there is none, a random mistake at times."""
    if habit is not None:
        return habit[1] if rng.random() < SHARE else scene
    return corrupt(scene, rng) if rng.random() < mistakes else scene


def plan_loss(model: JanusForConditionalGeneration, batch: Sequence[Example]) -> Tensor:
    """Mean cross-entropy of plan tokens."""
    rows = [torch.tensor([*example.plan_prompt, *example.plan]) for example in batch]
    hidden = trunk(model, model.get_input_embeddings()(pad_sequence(rows, batch_first=True)))
    rows_at, columns = _positions([len(e.plan_prompt) - 1 for e in batch], [len(e.plan) for e in batch])
    logits = model.lm_head(hidden[rows_at, columns])
    return cross_entropy(logits.float(), torch.tensor([token for example in batch for token in example.plan]))


def image_loss(model: JanusForConditionalGeneration, batch: Sequence[Example]) -> Tensor:
    """Mean cross-entropy of image tokens."""
    codes = torch.stack([example.codes for example in batch])
    image = model.prepare_embeddings_for_image_generation(codes)
    prompts = [model.get_input_embeddings()(torch.tensor(example.image_prompt)) for example in batch]
    rows = [torch.cat([text, drawn]) for text, drawn in zip(prompts, image, strict=True)]
    hidden = trunk(model, pad_sequence(rows, batch_first=True))
    rows_at, columns = _positions([len(e.image_prompt) - 1 for e in batch], [codes.shape[1]] * len(batch))
    return cross_entropy(model.model.generation_head(hidden[rows_at, columns]).float(), codes.flatten())


def trunk(model: JanusForConditionalGeneration, embeddings: Tensor) -> Tensor:
    """(B, L, H) -> (B, L, H). Rows are padded on the right, which causal attention never sees: no mask is needed."""
    return model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def _positions(first: Sequence[int], count: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Row and column of `count[b]` consecutive positions from `first[b]` of every row b."""
    rows = torch.repeat_interleave(torch.arange(len(first)), torch.tensor(count))
    columns = torch.cat([torch.arange(start, start + length) for start, length in zip(first, count, strict=True)])
    return rows, columns


def write_policy(model: JanusForConditionalGeneration, out: Path) -> None:
    """The folder that transformers, vLLM and the trainer load: weights, tokenizer and processor."""
    processor = policy_processor(IMAGE_SIDE, model.config.vq_config.num_patches**2)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
