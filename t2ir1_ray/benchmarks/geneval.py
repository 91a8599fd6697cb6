"""GenEval (arXiv 2310.11513): objects, counts, colours and positions by a detector; right or wrong for each image.

Rules as in the official `evaluate_images.py`. Judges: `detector` of kind `mask2former` (Mask2Former Swin-S on COCO, the
architecture of the official evaluator in transformers' weights instead of mmdet's), and `clip` (ViT-L-14, OpenAI) for
colours. With a detector that gives boxes only (grounding_dino, yolo_world) colour crops keep their background,
duplicates are suppressed, and counting uses the ordinary threshold, as 0.9 means nothing on its scale: do not set such
numbers beside published ones; grounding_dino is moreover what T2I-R1 trains on.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2ir1_ray.benchmarks.base import (
    Benchmark,
    Box,
    Call,
    Figure,
    Found,
    Item,
    View,
    need_path,
    one_per_category,
)
from t2ir1_ray.config import ExpertConfig
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.textfile import read_lines

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
DIRECTIONS = ("left of", "right of", "above", "below")
COLOR_TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
POSITION_SLACK = 0.1
GREY = (153, 153, 153)  # 0x999: what is put outside the mask of a colour crop


class GenEval(Benchmark):
    name = "geneval"
    images_per_prompt = 4
    needs = {
        "detector": ExpertConfig(kind="mask2former", path="", batch_size=8),
        "clip": ExpertConfig(kind="clip", path="", batch_size=32, options={"arch": "ViT-L-14-quickgelu"}),
    }

    def read(self, path: Path | None) -> list[Item]:
        path = need_path(path, "GenEval's evaluation_metadata.jsonl")
        items = []
        for index, (number, line) in enumerate(read_lines(path, "--prompts")):
            try:
                fields = json.loads(line)
                ok = _is_metadata(fields)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                ok = False
            if not ok:
                raise UserError(
                    f"--prompts: {path}:{number}: entry {index + 1} is not in the layout of GenEval's metadata"
                )
            items.append(Item(f"{index:05d}", fields["prompt"], fields["tag"], index, fields))
        return items

    def judges(self, items: Sequence[Item]) -> set[str]:
        colored = any("color" in asked for item in items for asked in item.fields["include"])
        return {"detector", "clip"} if colored else {"detector"}

    def observe(self, item: Item, rollouts: Any, call: Call) -> dict[str, Any]:
        fields = item.fields
        classes = list(dict.fromkeys(asked["class"] for asked in [*fields["include"], *fields.get("exclude", [])]))
        found = call("detector", "detect", rollouts, classes)
        colored = {asked["class"]: asked["count"] for asked in fields["include"] if "color" in asked}
        if not colored:
            return {"found": found}
        return {"found": found, "colors": call("clip", "colors", rollouts, found, colored, self._threshold(item))}

    def score(self, item: Item, view: View) -> dict[str, float | None]:
        objects = select(view.evidence["found"], self._threshold(item))
        return {"correct": float(correct(item.fields, objects, view.evidence.get("colors", {})))}

    def figures(self, items: Sequence[Item]) -> list[Figure]:
        return [Figure("overall", "correct", dict.fromkeys(TAGS, 1 / 6)), *one_per_category(items, "correct")]

    def image_path(self, item: Item, number: int, count: int) -> str:
        return f"{item.index:05d}/samples/{number:04d}.png"

    def sidecars(self, item: Item) -> dict[str, str]:
        return {f"{item.index:05d}/metadata.jsonl": json.dumps(item.fields)}

    def _threshold(self, item: Item) -> float:
        segments = self.experts["detector"].kind == "mask2former"
        return COUNTING_THRESHOLD if item.category == "counting" and segments else THRESHOLD


def _is_metadata(fields: Mapping[str, Any]) -> bool:
    """May raise what wrong types lead to instead of being False."""
    include, exclude = fields["include"], fields.get("exclude", [])
    ok = bool(include) and fields["tag"] in TAGS and bool(fields["prompt"].strip())
    for index, asked in enumerate([*include, *exclude]):
        ok &= isinstance(asked["class"], str) and type(asked["count"]) is int and asked["count"] > 0
        ok &= asked.get("color", COLORS[0]) in COLORS
        if "position" in asked:
            relation, target = asked["position"]
            ok &= relation in DIRECTIONS and type(target) is int and 0 <= target < min(index, len(include))
    return ok


def select(found: Sequence[Found], threshold: float) -> dict[str, list[Found]]:
    """What counts as seen, by class, surest first: above the threshold, and no more than 16 of a class."""
    objects: dict[str, list[Found]] = {}
    for one in sorted(found, key=lambda one: -one.score):
        if one.score > threshold and len(objects.setdefault(one.label, [])) < MAX_OBJECTS:
            objects[one.label].append(one)
    return {label: seen for label, seen in objects.items() if seen}


def correct(
    metadata: Mapping[str, Any], objects: Mapping[str, Sequence[Found]], colors: Mapping[str, Sequence[str]]
) -> bool:
    """Whether an image meets a prompt's metadata. colors: for each class that has one, those of its surest boxes."""
    groups: list[Sequence[Found] | None] = []
    for asked in metadata["include"]:
        seen = list(objects.get(asked["class"], []))[: asked["count"]]
        right = len(seen) == asked["count"]
        if right and "color" in asked:
            right = list(colors[asked["class"]]).count(asked["color"]) >= asked["count"]
        if right and "position" in asked:
            relation, group = asked["position"]
            targets = groups[group]
            right = targets is not None and all(
                relation in relative_position(one.box, target.box) for one in seen for target in targets
            )
        groups.append(seen if right else None)
    excess = any(len(objects.get(asked["class"], [])) >= asked["count"] for asked in metadata.get("exclude", []))
    return None not in groups and not excess


def relative_position(box: Box, other: Box) -> set[str]:
    """Where `box` is, seen from `other`: any of "left of", "right of", "above", "below"."""
    corners = np.array([box, other], float).reshape(2, 2, 2)
    centers, sizes = corners.mean(1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    clear = np.maximum(np.abs(offset) - POSITION_SLACK * sizes.sum(0), 0) * np.sign(offset)
    if np.all(np.abs(clear) < 1e-3):
        return set()
    right, down = clear / np.linalg.norm(offset)
    told = {"left of": right < -0.5, "right of": right > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {relation for relation, holds in told.items() if holds}


def color_crop(pixels: np.ndarray, one: Found) -> Image.Image:
    """The object's box, grey outside its mask if it has one. pixels: (H, W, 3) uint8."""
    image = Image.fromarray(pixels)
    if one.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, GREY), Image.fromarray(one.mask))
    left, top, right, bottom = (round(value) for value in one.box)
    left, top = min(max(left, 0), image.width - 1), min(max(top, 0), image.height - 1)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
