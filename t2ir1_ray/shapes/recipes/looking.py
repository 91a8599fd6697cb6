"""The base policy's lessons of looking: images with a question each, and what the vision tower should see in them.

Images come in as in transformers' own Janus: the vision tower's features, through the aligner, stand at the image
placeholders. A conversation is `User: <image>Is there a red ring in the image?\\n\\nAssistant:yes<eos>`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerBase

from t2ir1_ray.shapes.prompts import TASK_TYPES, sample_requirement, sample_scene
from t2ir1_ray.shapes.questions import ANSWERS, sample_question
from t2ir1_ray.shapes.recipes.expert_training import ATTRIBUTE_SIZES, attribute_labels, attribute_loss
from t2ir1_ray.shapes.recipes.train_vq import to_tensor
from t2ir1_ray.shapes.world import Scene, render

ATTRIBUTES = 0.3
"""Weight of the auxiliary task: name texture, colour and shape at every patch. Without it the tower hardly learns."""
TURNS = 4
"""Questions about one image in training: its tokens are read once for all of them."""


class Look(NamedTuple):
    """A conversation about a scene's image: token ids, and where its answers stand, an end token behind each."""

    scene: Scene
    conversation: list[int]
    answers_at: list[int]


def looks(
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    count: int,
    image_tokens: int,
    turns: int = TURNS,
    held_out: bool = False,
) -> list[Look]:
    """`count` conversations of `turns` questions and answers, each about the scene of another prompt."""
    found = []
    for _ in range(count):
        scene = sample_scene(sample_requirement(rng, rng.choice(TASK_TYPES), held_out), rng)
        conversation: list[int] = []
        answers_at = []
        for _ in range(turns):
            asked = sample_question(rng, scene)
            conversation += question_ids(tokenizer, asked.text, 0 if conversation else image_tokens)
            answers_at.append(len(conversation))
            answer = tokenizer.convert_tokens_to_ids(ANSWERS[0] if asked.answer else ANSWERS[1])
            conversation += [answer, tokenizer.eos_token_id]
        found.append(Look(scene, conversation, answers_at))
    return found


def question_ids(tokenizer: PreTrainedTokenizerBase, question: str, image_tokens: int) -> list[int]:
    """Ids of a question about an image, up to where the answer begins. image_tokens: 0 for a further question, whose
    image stands before it."""
    image = f"{tokenizer.boi_token}{tokenizer.image_token * image_tokens}{tokenizer.eoi_token}\n"
    text = f"User: {image if image_tokens else ''}{question}\n\nAssistant:"
    begin = [tokenizer.bos_token_id] if image_tokens else []
    return begin + tokenizer(text, add_special_tokens=False)["input_ids"]


def attribute_head(model: JanusForConditionalGeneration) -> nn.Linear:
    """Reads texture, colour and shape off every patch; it helps in training and is not kept."""
    return nn.Linear(model.config.vision_config.hidden_size, sum(ATTRIBUTE_SIZES))


def looking_loss(model: JanusForConditionalGeneration, head: nn.Linear, batch: Sequence[Look]) -> Tensor:
    """Mean cross-entropy of answers and their end tokens, and the attribute loss of the vision tower."""
    logits, seen = answer_logits(model, batch)
    said = torch.tensor([[look.conversation[at : at + 2] for at in look.answers_at] for look in batch])
    answers = cross_entropy(logits.float().flatten(0, 2), said.flatten())
    return answers + ATTRIBUTES * attribute_loss(head(seen), attribute_labels([look.scene for look in batch]))


def answer_logits(model: JanusForConditionalGeneration, batch: Sequence[Look]) -> tuple[Tensor, Tensor]:
    """Logits of every turn's answer and end token (B, turns, 2, vocabulary), and the vision tower's output (B, patches,
    width)."""
    rows = [torch.tensor(look.conversation) for look in batch]
    ids = pad_sequence(rows, batch_first=True, padding_value=model.config.text_config.pad_token_id)
    seen = model.model.get_image_features(to_tensor([render(look.scene) for look in batch]))
    places = (ids == model.config.image_token_id)[..., None]
    embeddings = model.get_input_embeddings()(ids).masked_scatter(places, seen.pooler_output)
    hidden = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    before = torch.tensor([[[at - 1, at] for at in look.answers_at] for look in batch])
    return model.lm_head(hidden[torch.arange(len(batch))[:, None, None], before]), seen.last_hidden_state


@torch.inference_mode()
def answering_quality(
    model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, count: int = 512, seed: int = 5
) -> dict[str, float]:
    """Share of right answers to one question each about scenes of held-out prompts, the likelier of yes and no counts;
    and the share of `yes`, which is half in truth."""
    tokens = model.config.vision_config.num_image_tokens
    found = looks(tokenizer, random.Random(seed), count, tokens, turns=1, held_out=True)
    logits = torch.cat([answer_logits(model, found[start : start + 64])[0] for start in range(0, count, 64)])
    both = tokenizer.convert_tokens_to_ids(list(ANSWERS))
    said_yes = logits[:, 0, 0, both].argmax(1) == 0
    truth = torch.tensor([look.conversation[look.answers_at[0]] == both[0] for look in found])
    return {"answers": (said_yes == truth).float().mean().item(), "yes": said_yes.float().mean().item()}
