"""Yes/no questions about images of the shapes world, in POPE's wording and with its three kinds of objects to ask for.

POPE (arXiv 2305.10355) asks "Is there a {object} in the image?", half of the time for an object that is there. Objects
that are not there come in three kinds, which here mean:

- `random`: any of the 90 looks that no object has;
- `popular`: one of the 30 looks that prompts ask for most, those without texture;
- `adversarial`: a near miss, an object of the image with another shape, colour or texture.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from t2ir1_ray.shapes.world import COLORS, COLUMNS, ROWS, SHAPES, TEXTURES, Scene, describe

KINDS = ("random", "popular", "adversarial")
QUESTION = "Is there a {object} in the image?"
ANSWERS = ("yes", "no")

Look = tuple[str, str, str]
"""(texture, colour, shape) of an object."""


class Question(NamedTuple):
    """What is asked about an image, and the truth."""

    text: str
    answer: bool
    kind: str  # one of KINDS; for what is there it only says which negatives it stands beside
    place: str  # of what is there, or of one such thing: "upper left"; empty for what is not


def sample_question(rng: random.Random, scene: Scene, kind: str | None = None, answer: bool | None = None) -> Question:
    """A question about the image of a scene, which has at least one object.

    kind: of KINDS, None for any. answer: None for yes and no with equal probability. An object without texture is not
    asked for where a textured one has its colour and shape, so the answer holds however "a red circle" is understood.
    """
    kind = kind or rng.choice(KINDS)
    answer = rng.random() < 0.5 if answer is None else answer
    place = ""
    if answer:
        item = rng.choice(scene)
        look = item.texture, item.color, item.shape
        place = f"{ROWS[item.row]} {COLUMNS[item.col]}"
    else:
        look = _absent(rng, scene, kind)
    return Question(QUESTION.replace("{object}", describe(*look)), answer, kind, place)


def question_words() -> tuple[str, ...]:
    """Every word of a question or an answer that prompts do not have."""
    return (*QUESTION.replace("{object}", "").replace("?", " ?").split(), *ANSWERS)


def _absent(rng: random.Random, scene: Scene, kind: str) -> Look:
    while True:
        look = _DRAWERS[kind](rng, scene)
        if not any(_may_be_called(look, (item.texture, item.color, item.shape)) for item in scene):
            return look


def _may_be_called(look: Look, shown: Look) -> bool:
    """Whether the words of `look` fit an object that looks like `shown`; no word for a texture leaves it open."""
    return look[1:] == shown[1:] and look[0] in ("solid", shown[0])


def _any(rng: random.Random, scene: Scene) -> Look:
    return rng.choice(TEXTURES), rng.choice(tuple(COLORS)), rng.choice(SHAPES)


def _untextured(rng: random.Random, scene: Scene) -> Look:
    return "solid", rng.choice(tuple(COLORS)), rng.choice(SHAPES)


def _near(rng: random.Random, scene: Scene) -> Look:
    item = rng.choice(scene)
    match rng.choice(("texture", "color", "shape")):
        case "texture":
            return rng.choice(TEXTURES), item.color, item.shape
        case "color":
            return item.texture, rng.choice(tuple(COLORS)), item.shape
        case _:
            return item.texture, item.color, rng.choice(SHAPES)


_DRAWERS = {"random": _any, "popular": _untextured, "adversarial": _near}
