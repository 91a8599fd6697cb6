"""The base policy's lessons of looking: what its vision tower should see, and questions about images.

Images come in as in transformers' own Janus: the vision tower's features, through the aligner, stand at the image
placeholders. A conversation is `User: <image>\\nIs there a red ring in the image?\\n\\nAssistant:yes, upper left.`.
Where a thing is says more than whether it is there: to look for it is learned from the place, and yes and no follow.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pad_sequence
from transformers import JanusForConditionalGeneration

from t2ir1_ray.janus.policy import PromptFormat
from t2ir1_ray.shapes.prompts import TASK_TYPES, sample_requirement, sample_scene
from t2ir1_ray.shapes.questions import ANSWERS, sample_question
from t2ir1_ray.shapes.recipes.expert_training import (
    ATTRIBUTE_SIZES,
    PATCHES_PER_SIDE,
    attribute_labels,
    attribute_loss,
)
from t2ir1_ray.shapes.recipes.train_vq import to_tensor
from t2ir1_ray.shapes.world import GRID_SIDE, Scene, render

TURNS = 4
"""Questions about one image in training: its tokens are read once for all of them."""


class Look(NamedTuple):
    """A conversation about a scene's image: token ids, and begin and end of every answer, its end token included."""

    scene: Scene
    conversation: list[int]
    answers: list[tuple[int, int]]


def looks(form: PromptFormat, rng: random.Random, count: int, turns: int = TURNS, held_out: bool = False) -> list[Look]:
    """`count` conversations of `turns` questions and answers, each about the scene of another prompt."""
    found = []
    for _ in range(count):
        scene = sample_scene(sample_requirement(rng, rng.choice(TASK_TYPES), held_out), rng)
        conversation: list[int] = []
        answers = []
        for _ in range(turns):
            asked = sample_question(rng, scene)
            if conversation:  # a further question, whose image stands before it
                conversation += _ids(form, f"User: {asked.text}\n\nAssistant:")
            else:
                conversation += form.question_ids(asked.text, PATCHES_PER_SIDE**2)
            answer = [*_ids(form, f"yes, {asked.place}." if asked.answer else "no."), form.eos_id]
            answers.append((len(conversation), len(conversation) + len(answer)))
            conversation += answer
        found.append(Look(scene, conversation, answers))
    return found


def _ids(form: PromptFormat, text: str) -> list[int]:
    return form.tokenizer(text, add_special_tokens=False)["input_ids"]


def open_eyes(model: JanusForConditionalGeneration, form: PromptFormat, rng: random.Random, steps: int) -> None:
    """Train the vision tower, which was frozen, and its aligner: a patch becomes the sum of its object's words.

    The language model has known the words' embeddings for long, so it has little to learn anew. An auxiliary head names
    texture, colour and shape at every patch; without it the tower hardly learns.
    """
    tower, aligner = model.model.vision_model.requires_grad_(True), model.model.aligner
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    head = nn.Linear(model.config.vision_config.hidden_size, sum(ATTRIBUTE_SIZES))
    trained = [parameter for module in (tower, aligner, head) for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(trained)
    words = model.get_input_embeddings().weight.detach()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
        scenes = [look.scene for look in looks(form, rng, 64, turns=1)]
        seen = model.model.get_image_features(to_tensor([render(scene) for scene in scenes]))
        named = torch.stack([words_of_patches(form, scene, words) for scene in scenes])
        told = attribute_loss(head(seen.last_hidden_state), attribute_labels(scenes))
        loss = mse_loss(seen.pooler_output.view_as(named), named) * words.shape[1] + 0.3 * told
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def words_of_patches(form: PromptFormat, scene: Scene, embeddings: Tensor) -> Tensor:
    """(36, H), row-major: the sum of the embeddings (V, H) of the words for a patch's object; zeros where none is."""
    per_cell = PATCHES_PER_SIDE // GRID_SIDE
    patches = torch.zeros(GRID_SIDE, per_cell, GRID_SIDE, per_cell, embeddings.shape[1])
    for item in scene:
        patches[item.row, :, item.col] = embeddings[_ids(form, item.name)].sum(0)
    return patches.flatten(0, 3)


def looking_loss(model: JanusForConditionalGeneration, batch: Sequence[Look]) -> Tensor:
    """Cross-entropy of an answer, the sum over its tokens: place and end weigh as much as yes and no."""
    answers = [(row, begin, end) for row, look in enumerate(batch) for begin, end in look.answers]
    places = [(row, at) for row, begin, end in answers for at in range(begin, end)]
    rows, columns = torch.tensor(places).T
    logits, ids = answer_logits(model, batch)
    losses = cross_entropy(logits[rows, columns - 1].float(), ids[rows, columns], reduction="none")
    return losses.sum() / len(answers)


def answer_logits(model: JanusForConditionalGeneration, batch: Sequence[Look]) -> tuple[Tensor, Tensor]:
    """Logits (B, L, V) of what comes after each token, and the tokens (B, L), padded on the right."""
    rows = [torch.tensor(look.conversation) for look in batch]
    ids = pad_sequence(rows, batch_first=True, padding_value=model.config.text_config.pad_token_id)
    seen = model.model.get_image_features(to_tensor([render(look.scene) for look in batch])).pooler_output
    places = (ids == model.config.image_token_id)[..., None]
    embeddings = model.get_input_embeddings()(ids).masked_scatter(places, seen)
    hidden = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    return model.lm_head(hidden), ids


@torch.inference_mode()
def answering_quality(
    model: JanusForConditionalGeneration, form: PromptFormat, count: int = 600, seed: int = 5
) -> dict[str, float]:
    """Share of right answers to one question each about scenes of held-out prompts, the likelier of yes and no counts;
    and the share of `yes`, which is half in truth."""
    both = form.tokenizer.convert_tokens_to_ids(list(ANSWERS))
    found = looks(form, random.Random(seed), count, turns=1, held_out=True)
    right, yes = [], []
    for start in range(0, count, 60):
        batch = found[start : start + 60]
        at = torch.tensor([look.answers[0][0] for look in batch])
        logits, ids = answer_logits(model, batch)
        rows = torch.arange(len(batch))
        said = logits[rows, at - 1][:, both].argmax(1) == 0
        right.append(said == (ids[rows, at] == both[0]))
        yes.append(said)
    return {"answers": torch.cat(right).float().mean().item(), "yes": torch.cat(yes).float().mean().item()}
