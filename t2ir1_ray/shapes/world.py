"""Scenes of the shapes world: what they are, how they look, and how they are read back from pixels or from a plan.

A scene is a handful of small objects on a 3 x 3 grid. An image has 24 x 24 pixels, a cell 8 x 8, an object 7 x 7. Every
object has a texture, a colour and a shape. `render` and `read_scene` are inverse to each other, and so are `write_plan`
and `parse_plan`: the semantic plan of a scene is text like `dotted yellow circle lower right, blue ring upper center.`
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

IMAGE_SIDE = 24
GRID_SIDE = 3
CELL_SIDE = IMAGE_SIDE // GRID_SIDE
OBJECT_SIDE = 7

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 200, 20),
    "purple": (150, 50, 180),
    "cyan": (40, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
TEXTURES = ("solid", "striped", "dotted")
ROWS = ("upper", "middle", "lower")
COLUMNS = ("left", "center", "right")
CELLS = tuple((row, col) for row in range(GRID_SIDE) for col in range(GRID_SIDE))

BACKGROUND = (245, 245, 245)
INK = (20, 20, 20)

# A cell is read as its nearest template when the mean squared error (of values in 0..1) is below TOLERANCE and the next
# template is farther by MARGIN. The two closest templates are 0.0147 apart; noise of 20/255 per value costs 0.006.
TOLERANCE = 0.010
MARGIN = 0.004


@dataclass(frozen=True, order=True)
class Item:
    """One object: what it is and the cell (row from the top, col from the left) that it stands in."""

    texture: str
    color: str
    shape: str
    row: int
    col: int

    @property
    def cell(self) -> tuple[int, int]:
        return self.row, self.col

    @property
    def name(self) -> str:
        """`dotted yellow circle`; a solid texture is not said."""
        return describe(self.texture, self.color, self.shape)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(cx, cy, w, h) of the object's 7 x 7 square, divided by the image side; y grows downward."""
        centre_x = (self.col * CELL_SIDE + OBJECT_SIDE / 2) / IMAGE_SIDE
        centre_y = (self.row * CELL_SIDE + OBJECT_SIDE / 2) / IMAGE_SIDE
        return centre_x, centre_y, OBJECT_SIDE / IMAGE_SIDE, OBJECT_SIDE / IMAGE_SIDE


Scene = tuple[Item, ...]
"""Objects in the order in which a plan names them, at most one per cell."""


@dataclass(frozen=True)
class Reading:
    """What `read_scene` saw: the objects in row-major order, and the cells that are neither object nor background."""

    items: Scene
    unknown: tuple[tuple[int, int], ...] = ()

    def shows(self, scene: Iterable[Item]) -> bool:
        """True if exactly these objects were seen, in any order, and nothing unreadable."""
        return not self.unknown and sorted(self.items) == sorted(scene)


def describe(texture: str | None, color: str | None, shape: str) -> str:
    """The words of an object: `dotted yellow circle`, `red ring`, `square`."""
    return " ".join(word for word in (texture, color, shape) if word and word != "solid")


# --- pixels ---------------------------------------------------------------------------------------------------------


def shape_mask(shape: str) -> np.ndarray:
    """bool (7, 7): the pixels that the shape covers."""
    y, x = np.mgrid[0:OBJECT_SIDE, 0:OBJECT_SIDE] + 0.5
    half = OBJECT_SIDE / 2
    dx, dy = x - half, y - half
    radius = np.hypot(dx, dy)
    disc = radius <= half - 0.1
    match shape:
        case "circle":
            return disc
        case "square":
            return np.ones_like(disc)
        case "triangle":
            return np.abs(dx) <= y / 2
        case "cross":
            return np.abs(np.abs(dx) - np.abs(dy)) <= 1
        case "ring":
            return disc & (radius >= 2)
    raise ValueError(f"unknown shape {shape!r}")


def texture_mask(texture: str) -> np.ndarray:
    """bool (7, 7): the pixels that are inked black instead of coloured."""
    y, x = np.mgrid[0:OBJECT_SIDE, 0:OBJECT_SIDE]
    match texture:
        case "solid":
            return np.zeros(x.shape, dtype=bool)
        case "striped":
            return y % 2 == 1
        case "dotted":
            return (x + y) % 2 == 1
    raise ValueError(f"unknown texture {texture!r}")


@cache
def _cell_pixels(texture: str, color: str, shape: str) -> np.ndarray:
    """uint8 (8, 8, 3): a cell holding one object; read-only, as it is shared."""
    cell = np.full((CELL_SIDE, CELL_SIDE, 3), BACKGROUND, dtype=np.uint8)
    covered = shape_mask(shape)
    patch = cell[:OBJECT_SIDE, :OBJECT_SIDE]
    patch[covered] = COLORS[color]
    patch[covered & texture_mask(texture)] = INK
    cell.setflags(write=False)
    return cell


def render(scene: Iterable[Item]) -> np.ndarray:
    """uint8 (24, 24, 3): the image of a scene."""
    image = np.full((IMAGE_SIDE, IMAGE_SIDE, 3), BACKGROUND, dtype=np.uint8)
    for item in scene:
        top, left = item.row * CELL_SIDE, item.col * CELL_SIDE
        image[top : top + CELL_SIDE, left : left + CELL_SIDE] = _cell_pixels(item.texture, item.color, item.shape)
    return image


def split_cells(pixels: np.ndarray) -> np.ndarray:
    """float64 (9, 192) in 0..1: the cells of an image (24, 24, 3) with values 0..255, row-major."""
    if pixels.shape != (IMAGE_SIDE, IMAGE_SIDE, 3):
        raise ValueError(f"an image must be (24, 24, 3), not {pixels.shape}")
    cells = pixels.reshape(GRID_SIDE, CELL_SIDE, GRID_SIDE, CELL_SIDE, 3).swapaxes(1, 2)
    return cells.reshape(len(CELLS), -1).astype(np.float64) / 255


@cache
def _templates() -> tuple[tuple[tuple[str, str, str] | None, ...], np.ndarray]:
    """What a cell can hold (None: nothing), and how each looks: float64 (91, 192) in 0..1."""
    kinds = tuple((t, c, s) for t in TEXTURES for c in COLORS for s in SHAPES)
    empty = np.full((CELL_SIDE, CELL_SIDE, 3), BACKGROUND, dtype=np.uint8)
    looks = np.stack([_cell_pixels(*kind) for kind in kinds] + [empty])
    return (*kinds, None), looks.reshape(len(looks), -1) / 255


def template_errors(pixels: np.ndarray) -> np.ndarray:
    """float64 (9, 91): mean squared error between every cell of the image and every template, the empty cell last."""
    _, looks = _templates()
    return ((split_cells(pixels)[:, None, :] - looks[None]) ** 2).mean(axis=2)


def read_scene(pixels: np.ndarray) -> Reading:
    """Read an image (24, 24, 3), values 0..255 of any dtype, cell by cell: exact on renders and under mild noise.

    A cell that is not clearly one template (see TOLERANCE and MARGIN) counts as unknown, so half-formed objects are
    never taken for objects.
    """
    kinds, _ = _templates()
    errors = template_errors(pixels)
    nearest = errors.argmin(axis=1)
    best, second = np.partition(errors, 1, axis=1)[:, :2].T
    clear = (best <= TOLERANCE) & (second - best >= MARGIN)
    items, unknown = [], []
    for cell, kind_index, is_clear in zip(CELLS, nearest, clear, strict=True):
        kind = kinds[kind_index]
        if not is_clear:
            unknown.append(cell)
        elif kind is not None:
            items.append(Item(*kind, *cell))
    return Reading(tuple(items), tuple(unknown))


# --- plans ----------------------------------------------------------------------------------------------------------

_PLAN_ITEM = re.compile(
    rf"(?:(?P<texture>{'|'.join(TEXTURES[1:])}) )?(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})"
    rf" (?P<row>{'|'.join(ROWS)}) (?P<col>{'|'.join(COLUMNS)})"
)


def write_plan(scene: Iterable[Item]) -> str:
    """The plan of a scene: `dotted yellow circle lower right, blue ring upper center.`"""
    return ", ".join(f"{item.name} {ROWS[item.row]} {COLUMNS[item.col]}" for item in scene) + "."


def parse_plan(text: str) -> Scene | None:
    """The scene that a plan describes; None if the text is no plan, or puts two objects into one cell.

    Blanks before punctuation do not matter, so text decoded word by word is read as well.
    """
    sentence = " ".join(text.split())
    if not sentence.endswith("."):
        return None
    items = []
    for part in sentence[:-1].split(","):
        found = _PLAN_ITEM.fullmatch(part.strip())
        if found is None:
            return None
        row, col = ROWS.index(found["row"]), COLUMNS.index(found["col"])
        items.append(Item(found["texture"] or "solid", found["color"], found["shape"], row, col))
    if len({item.cell for item in items}) < len(items):
        return None
    return tuple(items)
