"""Recipe of the shapes base policy: a tiny Janus taught to plan and to draw, imperfectly, so that RL has work to do.

It learns the world first and its habits (see `habits`) last, with fewer random mistakes: from a policy that knows how
to do it right, habits take few lessons. In both courses some plans are wrong and some images differ from their plan at
random, one image prompt in ten is the unconditional row of guidance, and one in ten has no plan (a baseline without
semantic-CoT). Between them it learns to look (see `looking`), so that what reinforcement does to understanding can be
measured; that comes suddenly or, beside other lessons, not at all, and is easily kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
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
from t2ir1_ray.shapes.recipes.looking import looking_loss, looks, open_eyes
from t2ir1_ray.shapes.recipes.tokenizer import VOCABULARY_SIZE, policy_processor, policy_tokenizer
from t2ir1_ray.shapes.recipes.train_vq import encode, vq_config
from t2ir1_ray.shapes.world import IMAGE_SIDE, Scene, render, write_plan

HIDDEN, LAYERS, HEADS = 128, 4, 4
UNCONDITIONAL, WITHOUT_PLAN = 0.1, 0.1


class Course(NamedTuple):
    """One part of the training."""

    steps: int
    peak_rate: float
    hold: float  # share of the steps before the rate falls
    plan_mistakes: float  # probability of a random mistake in the plan
    image_mistakes: float  # and of one in the image relative to its plan
    habits: bool  # where a habit applies, it has the place of random mistakes, with probability `habits.SHARE`
    lessons: int = 24  # of planning and drawing in each step
    images: int = 0  # that are asked about in each step
    first_sight: int = 0  # steps before it in which the vision tower learns to see


WORLD = Course(3_600, 2e-3, 0.5, 0.3, 0.2, habits=False)
LOOKING = Course(1_500, 1e-3, 0.5, 0.0, 0.0, habits=False, lessons=0, images=24, first_sight=600)
HABITS = Course(1_600, 1.5e-3, 0.3, 0.2, 0.15, habits=True, images=12)
COURSES = {"world": WORLD, "looking": LOOKING, "habits": HABITS}


class Example(NamedTuple):
    """Token ids of one lesson."""

    plan_prompt: list[int]
    plan: list[int]
    image_prompt: list[int]
    codes: Tensor  # (36,) int64


def train_policy(
    vq: JanusVQVAE,
    out: Path,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    courses: Mapping[str, Course] = COURSES,
) -> None:
    """Train from scratch, with fresh lessons at every step (40 CPU-minutes), and write a Janus folder in float16."""
    torch.manual_seed(seed)
    tokenizer = policy_tokenizer()
    form = PromptFormat(tokenizer, PolicyConfig(path=""))
    model = build_model(tokenizer, vq)
    for number, (name, course) in enumerate(courses.items(), start=1):
        rng = random.Random(seed + number)
        if course.first_sight:
            open_eyes(model, form, rng, course.first_sight)
        teach(model, vq, form, course, rng, lambda text, name=name: progress and progress(f"policy, {name} {text}"))
    write_policy(model.eval(), out)


def teach(
    model: JanusForConditionalGeneration,
    vq: JanusVQVAE,
    form: PromptFormat,
    course: Course,
    rng: random.Random,
    progress: Callable[[str], None] | None = None,
) -> None:
    """One course, with an optimiser of its own."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(course.steps):
        losses = []
        if course.lessons:
            batch = lessons(form, vq, rng, course.lessons, course)
            losses += [plan_loss(model, batch), image_loss(model, batch)]
        if course.images:
            losses.append(looking_loss(model, looks(form, rng, course.images)))
        loss = torch.stack(losses).sum()
        left = (course.steps - step) / ((1 - course.hold) * course.steps)
        rise, fall = min(1.0, (step + 1) / 40), min(1.0, max(0.03, left))
        for group in optimizer.param_groups:
            group["lr"] = course.peak_rate * rise * fall
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if progress and (step + 1) % 100 == 0:
            progress(f"{step + 1}/{course.steps} loss {loss.item():.3f}")


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
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=24,
        patch_size=4,  # transformers has no other number of patches than of codes
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
        if isinstance(module, nn.Linear) and "vision_model" not in name and name != "lm_head":
            scale = (2 * LAYERS) ** -0.5 if name.endswith(("o_proj", "down_proj")) else 1.0
            nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
    nn.init.normal_(model.get_input_embeddings().weight, std=HIDDEN**-0.5)
    model.model.vqmodel.load_state_dict(vq.state_dict())
    model.model.vqmodel.requires_grad_(False)
    model.model.vision_model.requires_grad_(False)
    model.model.generation_embeddings.weight.data.copy_(vq.quantize.embedding.weight)
    return model


def lessons(form: PromptFormat, vq: JanusVQVAE, rng: random.Random, count: int, course: Course) -> list[Example]:
    """`count` training prompts with a plan and an image each, mistakes and habits included."""
    drafts, images = [], []
    for index in range(count):
        requirement = sample_requirement(rng, TASK_TYPES[index % len(TASK_TYPES)], held_out=False)
        right = sample_scene(requirement, rng)
        planned = usual(right, plan_habit(requirement, right) if course.habits else None, course.plan_mistakes, rng)
        drawn = usual(planned, drawing_habit(planned) if course.habits else None, course.image_mistakes, rng)
        images.append(render(drawn))
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
