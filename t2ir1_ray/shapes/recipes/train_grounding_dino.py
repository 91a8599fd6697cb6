"""Recipe of the tiny GroundingDINO expert: boxes for phrases such as "striped blue ring" in 24 x 24 pixels.

The loss is our own, as transformers' assigns wrong targets from a batch's third image on: token-wise cross-entropy, L1
and GIoU on the decoder's queries (assigned one to one) and on the encoder's proposals (assigned by place: a proposal
at an object's cell must be that object), and the attributes at every place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
)
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoFusionLayer

from rewards.grounding_dino import caption_of, mend_transformers, token_weights
from t2ir1_ray.checkpoints.word_tokenizers import save_word_tokenizer
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
    phrase_of,
    picture,
    seeded,
    to_pixels,
    variation,
    words_of,
)
from t2ir1_ray.shapes.world import COLORS, GRID_SIDE, IMAGE_SIDE, SHAPES, TEXTURES, Scene

WIDTH = 64
QUERIES = 12
MOST_OBJECTS = 6
OBJECT_COUNTS = (1, 2, 2, 3, 3, 4, 4, 5, 6)
TEXT_LIMIT = 40
STEPS = 1100
IMAGES_PER_STEP = 32
POSITIVE_WEIGHT = 3.0
TOKEN_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""BERT's ids, which transformers' GroundingDINO has wired in."""
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclass(frozen=True, slots=True)
class Batch:
    """B images with captions and truth; O = MOST_OBJECTS, L text tokens, P places (6 x 6 and 3 x 3 feature maps)."""

    pixels: Tensor  # (B, 3, 24, 24) float32, ImageNet statistics
    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L)
    asked: Tensor  # (B, 1, L) float: tokens that belong to a phrase
    named: Tensor  # (B, O + 1, L) float: tokens that name object o; the last row, "nothing", is 0
    boxes: Tensor  # (B, O + 1, 4) cx, cy, w, h in 0..1
    exists: Tensor  # (B, O + 1) float
    at_place: Tensor  # (B, P) int64: the object standing there, or O for nothing
    attributes: Tensor  # (B, P, 3) int64


def train(out_dir: Path, seed: int = 0, progress: Progress | None = None, steps: int = STEPS) -> dict[str, Any]:
    """Train from scratch (about 200 CPU-seconds), write the checkpoint folder, return its figures."""
    rng, noise = seeded(seed)
    mend_transformers()
    out_dir.mkdir(parents=True, exist_ok=True)
    words = [*TEXTURES[1:], *COLORS, *SHAPES]
    tokenizer = save_word_tokenizer(out_dir, TOKEN_IDS | {word: i + 1 for i, word in enumerate(words)})
    model, attribute_head = build_model(), nn.Linear(WIDTH, sum(ATTRIBUTE_SIZES))
    parameters = [*model.parameters(), *attribute_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, betas=(0.9, 0.98))
    model.train()
    for step, rate in enumerate(learning_rates(1.5e-3, steps, warmup=100, hold=0.55, floor=0.02)):
        batch = sample_batch(tokenizer, rng, noise, scrambled=0.2 * step / steps)
        loss, decoded = losses(model, attribute_head, batch)
        descend(optimizer, loss, rate)
        if progress and (step + 1) % 100 == 0:
            progress(f"grounding_dino {step + 1}/{steps} loss {loss.item():.3f} decoder {decoded:.3f}")
    model.eval().save_pretrained(out_dir)
    size = {"shortest_edge": IMAGE_SIDE, "longest_edge": 2 * IMAGE_SIDE}
    GroundingDinoImageProcessor(size=size).save_pretrained(out_dir)
    halve(out_dir)
    count = sum(p.numel() for p in model.parameters())
    return {"decoder_loss": decoded, "steps": steps, "parameters": count, "bytes": folder_bytes(out_dir)}


def build_model() -> GroundingDinoForObjectDetection:
    """A two-stage GroundingDINO of 0.5 M parameters, initialised by fan-in: transformers' 0.02 is too small for it."""
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=IMAGE_SIDE,
            patch_size=PATCH_SIDE,
            embed_dim=32,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=3,
            mlp_ratio=2.0,
            drop_path_rate=0.0,
            out_features=["stage1", "stage2"],
        ),
        text_config=BertConfig(
            vocab_size=max(TOKEN_IDS.values()) + 1,
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=TEXT_LIMIT,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        num_queries=QUERIES,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_n_points=2,
        decoder_n_points=2,
        num_feature_levels=2,
        max_text_len=TEXT_LIMIT,
        dropout=0.0,
        fusion_droppath=0.0,
        two_stage=True,
        disable_custom_kernels=True,
    )
    model = GroundingDinoForObjectDetection(config)
    for name, module in model.named_modules():
        keep = any(part in name for part in ("sampling_offsets", "attention_weights", "bbox_embed"))
        if isinstance(module, nn.Linear) and not keep:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(module.in_channels * module.kernel_size[0] ** 2) ** -0.5)
        elif isinstance(module, nn.Embedding) and "relative" not in name:
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, GroundingDinoFusionLayer):
            nn.init.constant_(module.vision_param, 0.3)
            nn.init.constant_(module.text_param, 0.3)
    # Logits are plain dot products with the text features: start them near zero.
    nn.init.constant_(model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after.weight, 0.15)
    return model


# --- data -----------------------------------------------------------------------------------------------------------


def sample_batch(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, noise: torch.Generator, scrambled: float
) -> Batch:
    """Random scenes, each asked about 2 or 6 phrases."""
    shown = [picture(crowded_scene(rng, OBJECT_COUNTS), rng, scrambled) for _ in range(IMAGES_PER_STEP)]
    scenes = [scene for _, scene in shown]
    count = rng.choice((2, 6))
    phrases = [sample_phrases(scene or crowded_scene(rng, (1, 2)), count, rng) for scene in scenes]
    captions = [caption_of([words_of(phrase) for phrase in own]) for own in phrases]
    encoded = tokenizer([c.text for c in captions], padding=True, return_offsets_mapping=True, return_tensors="pt")
    tokens_of = torch.stack(
        [token_weights(c, o) > 0 for c, o in zip(captions, encoded.offset_mapping, strict=True)]
    ).float()

    named = torch.zeros(len(scenes), MOST_OBJECTS + 1, encoded.input_ids.shape[1])
    boxes = torch.full((len(scenes), MOST_OBJECTS + 1, 4), 0.5)
    cells = torch.full((len(scenes), GRID_SIDE, GRID_SIDE), MOST_OBJECTS)
    for index, (scene, own) in enumerate(zip(scenes, phrases, strict=True)):
        for order, item in enumerate(scene):
            boxes[index, order] = torch.tensor(item.box)
            cells[index, item.row, item.col] = order
            true = torch.tensor([matches(phrase, item) for phrase in own])
            named[index, order] = tokens_of[index][true].sum(0)
    fine = cells.repeat_interleave(PATCHES_PER_SIDE // GRID_SIDE, 1).repeat_interleave(PATCHES_PER_SIDE // GRID_SIDE, 2)
    return Batch(
        pixels=(to_pixels([image for image, _ in shown], noise) - MEAN) / STD,
        input_ids=encoded.input_ids,
        attention_mask=encoded.attention_mask,
        asked=tokens_of.sum(1, keepdim=True),
        named=named,
        boxes=boxes,
        exists=(torch.arange(MOST_OBJECTS + 1) < torch.tensor([len(s) for s in scenes])[:, None]).float(),
        at_place=torch.cat([fine.flatten(1), cells.flatten(1)], 1),
        attributes=torch.cat([attribute_labels(scenes), attribute_labels(scenes, per_cell=1)], 1),
    )


def sample_phrases(scene: Scene, count: int, rng: random.Random) -> list[Phrase]:
    """`count` phrases in random order: three of eight are true, the others vary what is there."""
    true = max(1, count * 3 // 8)
    phrases = [phrase_of(rng.choice(scene), rng) if i < true else variation(scene, rng) for i in range(count)]
    rng.shuffle(phrases)
    return phrases


# --- loss -----------------------------------------------------------------------------------------------------------


def losses(model: GroundingDinoForObjectDetection, attribute_head: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    """The whole loss, and the part of the last decoder layer for the log."""
    output = model.model(pixel_values=batch.pixels, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    image = torch.arange(len(batch.pixels))[:, None]
    # Proposals of the encoder. Only the 3 x 3 map has objects; the 6 x 6 map would propose each four times.
    named = batch.named[image, batch.at_place]
    named[:, : PATCHES_PER_SIDE**2] = 0
    logits = output.enc_outputs_class[..., : batch.input_ids.shape[1]].masked_fill(
        batch.attention_mask[:, None] == 0, 0
    )
    total = detection_loss(
        logits,
        output.enc_outputs_coord_logits.sigmoid(),
        named,
        batch.boxes[image, batch.at_place],
        batch.exists[image, batch.at_place],
        batch.asked,
    )
    total = total + attribute_loss(attribute_head(output.encoder_last_hidden_state_vision), batch.attributes)
    text = output.encoder_last_hidden_state_text.transpose(1, 2)
    for layer in range(output.intermediate_hidden_states.shape[1]):
        hidden = output.intermediate_hidden_states[:, layer]
        before = output.init_reference_points if layer == 0 else output.intermediate_reference_points[:, layer - 1]
        boxes = (model.bbox_embed[layer](hidden) + torch.logit(before, eps=1e-5)).sigmoid()
        logits = hidden @ text
        object_of_query = assign_queries(logits, boxes, batch)
        decoder_loss = detection_loss(
            logits,
            boxes,
            batch.named[image, object_of_query],
            batch.boxes[image, object_of_query],
            batch.exists[image, object_of_query],
            batch.asked,
        )
        total = total + decoder_loss
    return total, decoder_loss.item()


def detection_loss(
    logits: Tensor, boxes: Tensor, named: Tensor, true_boxes: Tensor, exists: Tensor, asked: Tensor
) -> Tensor:
    """Token-wise cross-entropy over asked tokens, and L1 and GIoU where an object exists.

    logits, named: (B, Q, L). boxes, true_boxes: (B, Q, 4). exists: (B, Q). asked: (B, 1, L).
    """
    weight = (1 + (POSITIVE_WEIGHT - 1) * named) * asked
    naming = (binary_cross_entropy_with_logits(logits, named, reduction="none") * weight).sum()
    distance = 5 * (boxes - true_boxes).abs().sum(-1) + 2 * (1 - generalized_iou(boxes, true_boxes))
    return naming / named.sum().clamp(min=1) + (distance * exists).sum() / exists.sum().clamp(min=1)


@torch.no_grad()
def assign_queries(logits: Tensor, boxes: Tensor, batch: Batch) -> Tensor:
    """(B, Q) int64: the object that each query stands for at the least cost, or MOST_OBJECTS for nothing."""
    share = batch.named / batch.named.sum(-1, keepdim=True).clamp(min=1)
    cost = -2 * torch.einsum("bql,bol->bqo", logits.sigmoid(), share)
    cost += 5 * torch.cdist(boxes, batch.boxes, p=1) - 2 * generalized_iou(boxes[:, :, None], batch.boxes[:, None])
    cost = (cost * batch.exists[:, None])[..., :MOST_OBJECTS]
    query_of_object = cheapest_assignment(cost)
    missing = batch.exists[:, :MOST_OBJECTS] == 0
    objects = torch.arange(MOST_OBJECTS).expand_as(query_of_object).masked_fill(missing, MOST_OBJECTS)
    return torch.full(logits.shape[:2], MOST_OBJECTS).scatter(1, query_of_object, objects)


def cheapest_assignment(cost: Tensor) -> Tensor:
    """(B, Q, O) costs -> (B, O) int64, a different query for every object with the least sum; exact, O is small.

    Dynamic programming over the subsets of objects that are served, query by query, for the whole batch at once.
    """
    images, queries, objects = cost.shape
    subsets = 1 << objects
    best = torch.full((images, subsets), torch.inf)
    best[:, 0] = 0
    served: list[Tensor] = []  # per query and subset: the object that the query takes to reach it, -1 for none
    for query in range(queries):
        after, choice = best.clone(), torch.full((images, subsets), -1)
        for index in range(objects):
            without = torch.tensor([s for s in range(subsets) if not s >> index & 1])
            reached, price = without | 1 << index, best[:, without] + cost[:, query, index, None]
            better = price < after[:, reached]
            after[:, reached] = torch.where(better, price, after[:, reached])
            choice[:, reached] = torch.where(better, index, choice[:, reached])
        best = after
        served.append(choice)
    row, subset = torch.arange(images), torch.full((images,), subsets - 1)
    query_of_object = torch.zeros(images, objects, dtype=torch.long)
    for query in reversed(range(queries)):
        index = served[query][row, subset]
        took = index >= 0
        query_of_object[row[took], index[took]] = query
        subset = torch.where(took, subset - (1 << index.clamp(min=0)), subset)
    return query_of_object


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU (arXiv 1902.09630) of boxes (..., 4) as cx, cy, w, h."""

    def corners(boxes: Tensor) -> Sequence[Tensor]:
        return boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2

    (low_a, high_a), (low_b, high_b) = corners(first), corners(second)
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - shared
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(-1)
    return shared / union - (hull - union) / hull
