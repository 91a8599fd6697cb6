"""Random scenes and single mistakes in them: the raw material of every training in this world."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from t2ir1_ray.shapes.world import CELLS, COLORS, SHAPES, TEXTURES, Item, Scene

MISTAKES = ("drop", "color", "shape", "move", "extra", "texture")
MAX_ITEMS = 4
"""No prompt asks for more objects than this, and a mistake does not add beyond it."""

T = TypeVar("T")


def random_scene(rng: random.Random, count: int) -> Scene:
    """`count` random objects in different cells; six of ten draw any texture, the others are solid."""
    cells = rng.sample(CELLS, count)
    return tuple(
        Item(
            rng.choice(TEXTURES) if rng.random() < 0.6 else "solid",
            rng.choice(tuple(COLORS)),
            rng.choice(SHAPES),
            *cell,
        )
        for cell in cells
    )


def corrupt(scene: Scene, rng: random.Random) -> Scene:
    """The scene with exactly one mistake of a random kind.

    Where the kind is impossible (dropping the only object, adding a fifth one) an object moves instead. An extra object
    is the copy of one that is there, which is the mistake that real generators make when they count.
    """
    kind = rng.choice(MISTAKES)
    index = rng.randrange(len(scene))
    item = scene[index]
    free = [cell for cell in CELLS if cell not in {other.cell for other in scene}]
    if kind == "drop" and len(scene) > 1:
        return scene[:index] + scene[index + 1 :]
    if kind == "extra" and len(scene) < MAX_ITEMS:
        row, col = rng.choice(free)
        return (*scene, replace(item, row=row, col=col))
    if kind == "color":
        wrong = replace(item, color=_other(rng, tuple(COLORS), item.color))
    elif kind == "shape":
        wrong = replace(item, shape=_other(rng, SHAPES, item.shape))
    elif kind == "texture":
        wrong = replace(item, texture=_other(rng, TEXTURES, item.texture))
    else:
        row, col = rng.choice(free)
        wrong = replace(item, row=row, col=col)
    return scene[:index] + (wrong,) + scene[index + 1 :]


def _other(rng: random.Random, choices: Sequence[T], current: T) -> T:
    return rng.choice([choice for choice in choices if choice != current])
