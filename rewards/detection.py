"""Scores of the object-detector expert from given detections: pure functions of plain values.

Source: the detector reward of the official T2I-R1 repository. `compat="official"` gives its numbers, defects included.
`compat="fixed"` (the default) mends them:
  (a) "above", "on top of", "under" and "bottom of" are known directions (officially they score 0);
  (b) "next to", "near", "on side of" compare a distance in pixels with 150 (officially a normalised one, so always 1);
  (c) a noun is matched in full (officially by its first and last word, so "roll of paper towel" never matches);
  (d) suppression runs on corner boxes (officially centre boxes are read as corners, and duplicates survive);
  (e) "a cup next to a cup" needs two boxes (officially an exception is swallowed and the row scores 0);
  (f) nouns may be null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Compat = Literal["fixed", "official"]
Directions = Literal["dominant", "own"]

IMAGE_SIDE_PX = 384
"""Side of the official images: normalised distances are multiplied by it before they meet NEAR_PX."""
NEAR_PX = 150
NMS_IOU = 0.5
TOUCHING_IOU = 0.1

_NEAR = frozenset({"next to", "near", "on side of"})
_ABOVE = frozenset({"above", "on top of", "on the top of", "top of"})
_BELOW = frozenset({"below", "on the bottom of", "under", "bottom of"})
_LEFT = frozenset({"on the left of", "left of"})
_RIGHT = frozenset({"on the right of", "right of"})
_OFFICIALLY_UNKNOWN = frozenset({"above", "on top of", "under", "bottom of"})


class Box(NamedTuple):
    """Centre, width and height as fractions of the image side; y grows downward; may stick out of the image."""

    cx: float
    cy: float
    w: float
    h: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return self.cx - self.w / 2, self.cy - self.h / 2, self.cx + self.w / 2, self.cy + self.h / 2


class Detection(NamedTuple):
    """A box that passed the score threshold. `phrase` is the label the official code would give to `noun`."""

    noun: str
    phrase: str
    box: Box
    score: float


class _Found(NamedTuple):
    box: Box
    score: float


def detection_score(
    row: Mapping[str, Any],
    detections: Sequence[Any],
    compat: Compat = "fixed",
    directions: Directions = "dominant",
) -> float:
    """Score of one image in 0..1 (spatial rows: at most 0.9).

    row: a prompt's fields (task_type, nouns, spatial_info, numeracy_info). A spatial row without spatial_info or a
        numeracy row without numeracy_info is scored like an object row.
    detections: objects or mappings with `noun`, `phrase`, `box` (cx, cy, w, h in 0..1) and `score`, in any order.
    directions: "dominant" asks that a direction's axis be the larger one, as officially; "own" looks at that axis only.
    Raises TypeError for null nouns with compat="official", as the official class does.
    """
    if compat not in ("fixed", "official"):
        raise ValueError(f"compat: {compat!r} is neither 'fixed' nor 'official'")
    official = compat == "official"
    nouns, task = row.get("nouns"), row.get("task_type")
    if official and nouns is None:
        raise TypeError("nouns: null, which the official detector reward does not accept")
    if official and not nouns:
        return 1.0
    found = _by_label(detections, "phrase" if official else "noun")
    if task == "spatial" and row.get("spatial_info"):
        return _spatial_score(row["spatial_info"], found, official, directions)
    if task == "numeracy" and row.get("numeracy_info"):
        return _numeracy_score(row["numeracy_info"], found, official)
    return sum(noun in found for noun in nouns) / len(nouns) if nouns else 1.0


def position_score(locality: str, first: Box, second: Box, directions: Directions = "dominant") -> float:
    """How well "first <locality> second" holds, in 0..1, by the corrected rules; 0 for an unknown word."""
    dx, dy = second.cx - first.cx, second.cy - first.cy
    if locality in _NEAR:
        distance = IMAGE_SIDE_PX * math.hypot(dx, dy)
        return 1.0 if distance <= NEAR_PX else NEAR_PX / distance
    if locality in _ABOVE:
        along, across = dy, dx
    elif locality in _BELOW:
        along, across = -dy, dx
    elif locality in _LEFT:
        along, across = dx, dy
    elif locality in _RIGHT:
        along, across = -dx, dy
    else:
        return 0.0
    if along <= 0 or (directions == "dominant" and along <= abs(across)):
        return 0.0
    overlap = iou(first.corners, second.corners)
    return 1.0 if overlap < TOUCHING_IOU else TOUCHING_IOU / overlap


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two corner boxes (x1, y1, x2, y2); 0 if the union is not positive."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


def suppress(boxes: Sequence[Sequence[float]], scores: Sequence[float], threshold: float = NMS_IOU) -> list[int]:
    """Non-maximum suppression over corner boxes: indices kept, by falling score."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def _by_label(detections: Sequence[Any], label: str) -> dict[str, list[_Found]]:
    """Detections grouped by noun or phrase, each list by falling score."""
    found: dict[str, list[_Found]] = {}
    for detection in detections:
        read = detection.get if isinstance(detection, Mapping) else lambda name, item=detection: getattr(item, name)
        found.setdefault(read(label), []).append(_Found(Box(*read("box")), float(read("score"))))
    for boxes in found.values():
        boxes.sort(key=lambda item: -item.score)
    return found


def _spatial_score(
    info: Mapping[str, str], found: Mapping[str, list[_Found]], official: bool, directions: Directions
) -> float:
    first, second, locality = info["obj1"], info["obj2"], info["locality"]
    if first == second:
        # Officially this raises once the object is found, and the catch-all around it returns 0.
        return 0.0 if official else _spatial_score_of_twins(found.get(first, []), locality, directions)
    score = 0.2 * ((first in found) + (second in found))
    if first in found and second in found:
        a, b = found[first][0].box, found[second][0].box
        score += (_official_position if official else position_score)(locality, a, b, directions) / 2
    return score


def _spatial_score_of_twins(boxes: list[_Found], locality: str, directions: Directions) -> float:
    """obj1 and obj2 are the same noun: two different boxes are needed, in either order."""
    kept = suppress([item.box.corners for item in boxes], [item.score for item in boxes])
    if len(kept) < 2:
        return 0.2 * len(kept)
    a, b = boxes[kept[0]].box, boxes[kept[1]].box
    return 0.4 + max(position_score(locality, a, b, directions), position_score(locality, b, a, directions)) / 2


def _official_position(locality: str, first: Box, second: Box, directions: Directions) -> float:
    if locality in _NEAR:
        return 1.0
    if locality in _OFFICIALLY_UNKNOWN:
        return 0.0
    return position_score(locality, first, second, directions)


def _numeracy_score(info: Sequence[Mapping[str, Any]], found: Mapping[str, list[_Found]], official: bool) -> float:
    score = 0.0
    for item in info:
        boxes = found.get(item["obj_name"])
        if boxes is None:
            continue
        # The official code hands (cx, cy, w, h) to a suppression that reads (x1, y1, x2, y2).
        corners = [one.box if official else one.box.corners for one in boxes]
        count = len(suppress(corners, [one.score for one in boxes]))
        score += (1.0 if count == item["num"] else 0.2) / len(info)
    return score
