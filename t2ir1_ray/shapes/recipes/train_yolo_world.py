"""Recipe of the tiny YOLO-World expert; needs the optional package ultralytics (AGPL-3.0).

Network and text tower learn together. Every anchor inside an object must give that object's box and the classes that
name it; an auxiliary loss asks it for the object's attributes, without which circle, square and cross look alike.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from rewards.yolo_world import prepare_ultralytics
from t2ir1_ray.checkpoints.word_tokenizers import SPECIAL, save_word_tokenizer
from t2ir1_ray.shapes.recipes.expert_training import (
    ATTRIBUTE_SIZES,
    Progress,
    attribute_labels,
    attribute_loss,
    crowded_scene,
    descend,
    folder_bytes,
    halve,
    learning_rates,
    matches,
    picture,
    seeded,
    to_pixels,
    words_of,
)
from t2ir1_ray.shapes.recipes.train_grounding_dino import sample_phrases
from t2ir1_ray.shapes.world import CELL_SIDE, COLORS, GRID_SIDE, IMAGE_SIDE, OBJECT_SIDE, SHAPES, TEXTURES

WIDTH = 16
REG_MAX = 4
TEXT_DIM = 512
STEPS = 1500
IMAGES_PER_STEP = 32
POSITIVE_WEIGHT = 3.0
INNER_RADIUS = 3.2
"""Anchors this close to an object's centre, in pixels along each axis, stand for it."""

NETWORK = {
    "nc": 3,
    "reg_max": REG_MAX,
    "scale": "t",
    "scales": {"t": [1.0, 1.0, 256]},
    "backbone": [
        [-1, 1, "Conv", [WIDTH, 3, 2]],
        [-1, 1, "C2f", [WIDTH, True]],
        [-1, 1, "Conv", [2 * WIDTH, 3, 2]],
        [-1, 1, "C2f", [2 * WIDTH, True]],
        [-1, 1, "Conv", [4 * WIDTH, 3, 2]],
        [-1, 1, "C2f", [4 * WIDTH, True]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 3], 1, "Concat", [1]],
        [-1, 1, "C2fAttn", [2 * WIDTH, WIDTH, 2]],
        [8, 1, "Conv", [2 * WIDTH, 3, 2]],
        [[-1, 5], 1, "Concat", [1]],
        [-1, 1, "C2fAttn", [4 * WIDTH, 2 * WIDTH, 2]],
        [[8, 11], 1, "WorldDetect", ["nc", TEXT_DIM, True]],
    ],
}
"""YOLOv8-World with strides 4 and 8 instead of 8, 16 and 32: 45 anchors on 24 x 24 pixels."""

TEXT_TOWER = {
    "embed_dim": TEXT_DIM,
    # open_clip has no CLIP without a vision tower; this one is never used.
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "mlp_ratio": 1.0},
    "text_cfg": {
        "context_length": 6,
        "width": 64,
        "heads": 4,
        "layers": 1,
        "mlp_ratio": 2.0,
        "hf_tokenizer_name": "words",
    },
}


@dataclass(frozen=True, slots=True)
class Batch:
    """B images with K classes each, and the 3 x 3 = 9 cells' truth."""

    pixels: Tensor  # (B, 3, 24, 24) float32 in 0..1
    classes: list[list[str]]  # B lists of K phrases
    present: Tensor  # (B, 9) bool: whether an object stands in the cell
    named: Tensor  # (B, 9, K) float: whether class k names it
    attributes: Tensor  # (B, 9, 3) int64


def train(out_dir: Path, seed: int = 0, progress: Progress | None = None, steps: int = STEPS) -> dict[str, Any]:
    """Train from scratch (about 150 CPU-seconds), write the checkpoint folder, return its figures."""
    rng, noise = seeded(seed)
    prepare_ultralytics()
    from ultralytics.nn.tasks import WorldModel

    text_dir = out_dir / "text"
    text_dir.mkdir(parents=True, exist_ok=True)
    net = WorldModel(NETWORK, nc=NETWORK["nc"], verbose=False)
    for module in net.modules():
        if type(module).__name__ == "BNContrastiveHead":
            nn.init.constant_(module.bias, -3.0)
            nn.init.constant_(module.logit_scale, 1.0)
    text, tokenizer = build_text_tower(text_dir)
    levels = [branch[0].conv.in_channels for branch in net.model[-1].cv2]
    attribute_heads = nn.ModuleList(nn.Conv2d(channels, sum(ATTRIBUTE_SIZES), 1) for channels in levels)
    text_parameters = [p for name, p in text.named_parameters() if not name.startswith("visual")]
    optimizer = torch.optim.AdamW(
        [*net.parameters(), *text_parameters, *attribute_heads.parameters()], weight_decay=0.01
    )
    net.requires_grad_(True).train()
    for step, rate in enumerate(learning_rates(2e-3, steps)):
        batch = sample_batch(rng, noise, classes=rng.choice((3, 8)), scrambled=0.2 * step / steps)
        features = text_features(text, tokenizer, batch.classes)
        net.model[-1].nc = features.shape[1]
        output = net.predict(batch.pixels, txt_feats=features)
        attributes = torch.cat(
            [head(level).flatten(2) for head, level in zip(attribute_heads, output["feats"], strict=True)], 2
        )
        loss, naming = losses(output, net.model[-1].stride, attributes.transpose(1, 2), batch)
        descend(optimizer, loss, rate, clip=5.0)
        if progress and (step + 1) % 100 == 0:
            progress(f"yolo_world {step + 1}/{steps} loss {loss.item():.3f} classes {naming:.3f}")
    net.eval().float()
    (out_dir / "config.json").write_text(json.dumps({"image_size": IMAGE_SIDE, "model": NETWORK}, indent=2) + "\n")
    for module, file in ((net, out_dir / "model.safetensors"), (text, text_dir / "open_clip_model.safetensors")):
        save_file({name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}, file)
    halve(out_dir)
    halve(text_dir)
    count = sum(p.numel() for p in net.parameters()) + sum(p.numel() for p in text_parameters)
    return {"class_loss": naming, "steps": steps, "parameters": count, "bytes": folder_bytes(out_dir)}


def build_text_tower(folder: Path) -> tuple[nn.Module, Any]:
    """A CLIP text tower of one layer with its tokenizer, in open_clip's layout; the weights are written later."""
    words = (*SPECIAL, *TEXTURES[1:], *COLORS, *SHAPES, "[EOT]")
    save_word_tokenizer(folder, words, template="[CLS] $A [EOT]")
    text_cfg = {**TEXT_TOWER["text_cfg"], "vocab_size": len(words)}
    config = {"model_cfg": {**TEXT_TOWER, "text_cfg": text_cfg}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    return model, open_clip.get_tokenizer(f"local-dir:{folder}")


def text_features(model: nn.Module, tokenizer: Any, classes: list[list[str]]) -> Tensor:
    """(B, K, TEXT_DIM), normalised; each distinct phrase is encoded once."""
    distinct = list(dict.fromkeys(phrase for own in classes for phrase in own))
    features = model.encode_text(tokenizer(distinct), normalize=True)
    return torch.stack([features[[distinct.index(phrase) for phrase in own]] for own in classes])


def sample_batch(rng: random.Random, noise: torch.Generator, classes: int, scrambled: float) -> Batch:
    """Random scenes, each with `classes` phrases."""
    shown = [picture(crowded_scene(rng, (1, 2, 2, 3, 3, 4)), rng, scrambled) for _ in range(IMAGES_PER_STEP)]
    scenes = [scene for _, scene in shown]
    phrases = [sample_phrases(scene or crowded_scene(rng, (1, 2)), classes, rng) for scene in scenes]
    named = torch.zeros(len(scenes), GRID_SIDE**2, classes)
    for index, (scene, own) in enumerate(zip(scenes, phrases, strict=True)):
        for item in scene:
            named[index, item.row * GRID_SIDE + item.col] = torch.tensor([float(matches(p, item)) for p in own])
    attributes = attribute_labels(scenes, per_cell=1)
    return Batch(
        pixels=to_pixels([image for image, _ in shown], noise),
        classes=[[words_of(phrase) for phrase in own] for own in phrases],
        present=attributes[..., 0] > 0,
        named=named,
        attributes=attributes,
    )


def losses(output: dict[str, Any], stride: Tensor, attributes: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """Class, box (CIoU and distribution focal) and attribute losses over A anchors; and the class part for the log.

    output: what WorldDetect returns in training. attributes: (B, A, sum(ATTRIBUTE_SIZES)).
    """
    from ultralytics.utils.metrics import bbox_iou
    from ultralytics.utils.tal import bbox2dist, dist2bbox, make_anchors

    anchors, strides = make_anchors(output["feats"], stride, 0.5)  # (A, 2) in cells of each level, (A, 1) pixels
    centres = anchors * strides
    place = (centres // CELL_SIDE).long().clamp(0, GRID_SIDE - 1)  # (A, 2) column, row
    cell = place[:, 1] * GRID_SIDE + place[:, 0]
    inside = (centres - place * CELL_SIDE - OBJECT_SIDE / 2).abs().amax(1) < INNER_RADIUS
    positive = batch.present[:, cell] & inside  # (B, A)
    named = batch.named[:, cell] * positive[..., None]

    scores = output["scores"].transpose(1, 2)
    naming = binary_cross_entropy_with_logits(scores, named, reduction="none") * (1 + (POSITIVE_WEIGHT - 1) * named)
    naming = naming.sum() / named.sum().clamp(min=1)

    corners = torch.cat([place * CELL_SIDE, place * CELL_SIDE + OBJECT_SIDE], 1).float() / strides  # (A, 4)
    bins = output["boxes"].transpose(1, 2).unflatten(2, (4, REG_MAX))  # (B, A, 4, REG_MAX)
    distances = bins.softmax(3) @ torch.arange(REG_MAX, dtype=torch.float32)
    true_corners = corners.expand(len(positive), -1, -1)[positive]
    overlap = bbox_iou(dist2bbox(distances, anchors, xywh=False)[positive], true_corners, xywh=False, CIoU=True)
    true_distances = bbox2dist(anchors, corners, REG_MAX - 1).clamp(0, REG_MAX - 1.01)
    focal = focal_loss(bins[positive], true_distances.expand(len(positive), -1, -1)[positive])
    shown = attribute_loss(attributes, batch.attributes[:, cell] * positive[..., None])
    return naming + 2 * (1 - overlap).mean() + 0.5 * focal + 0.5 * shown, naming.item()


def focal_loss(bins: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (arXiv 2006.04388): probability goes to the two bins around a distance.

    bins: (P, 4, REG_MAX) logits. distances: (P, 4) in 0..REG_MAX - 1.
    """
    low = distances.long()
    share = distances - low
    logits = bins.flatten(0, 1)
    below = cross_entropy(logits, low.flatten(), reduction="none") * (1 - share).flatten()
    above = cross_entropy(logits, (low + 1).flatten(), reduction="none") * share.flatten()
    return (below + above).mean()
