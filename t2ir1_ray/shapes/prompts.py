"""Prompts of the shapes world: what a prompt asks for, its sentence, its row in the T2I-R1 layout, and the split.

All eight task types of T2I-R1 occur. The grammar is closed: `parse_prompt` reads back what `sentence` wrote, so the
verifier needs a prompt's text alone. Relations follow the dominant axis, as the corrected detection rules do, so that
a perfect detector gets full marks.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from t2ir1_ray.shapes.world import CELLS, COLORS, SHAPES, TEXTURES, Item, Scene, describe

TASK_TYPES = ("spatial", "numeracy", "color", "shape", "texture", "object", "complex", "non")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("on the left of", "on the right of", "above", "below", "next to")
_OPPOSITE = {
    "on the left of": "on the right of",
    "on the right of": "on the left of",
    "above": "below",
    "below": "above",
    "next to": "next to",
}


@dataclass(frozen=True, order=True)
class Noun:
    """An object that a prompt asks for. No texture means solid, no colour means any."""

    texture: str | None
    color: str | None
    shape: str

    @property
    def name(self) -> str:
        return describe(self.texture, self.color, self.shape)

    def matches(self, item: Item) -> bool:
        return (
            (self.texture or "solid") == item.texture and self.color in (None, item.color) and self.shape == item.shape
        )


@dataclass(frozen=True)
class Requirement:
    """What an image must show: exactly these objects, and, if there is a relation, it between the first two."""

    nouns: tuple[Noun, ...]
    relation: str | None = None

    def satisfied_by(self, scene: Scene) -> bool:
        """All or nothing: a one-to-one match of objects to nouns under which the relation holds."""
        return len(scene) == len(self.nouns) and any(
            all(noun.matches(item) for noun, item in zip(self.nouns, order, strict=True))
            and (self.relation is None or related(self.relation, order[0], order[1]))
            for order in permutations(scene)
        )

    def canonical(self) -> str:
        """One text for all wordings of the same scene: "A and B" is "B and A", "A above B" is "B below A"."""
        names = [f"{n.texture} {n.color} {n.shape}" for n in self.nouns]
        if self.relation is None:
            return " + ".join(sorted(names))
        straight = (names[0], self.relation, names[1])
        turned = (names[1], _OPPOSITE[self.relation], names[0])
        return " ".join(min(straight, turned)) + " + " + " + ".join(sorted(names[2:]))


def related(relation: str, first: Item, second: Item) -> bool:
    """Whether `first` stands in the relation to `second`. The dominant axis decides; next to: direct neighbours."""
    right, down = second.col - first.col, second.row - first.row
    match relation:
        case "on the left of":
            return right > abs(down)
        case "on the right of":
            return -right > abs(down)
        case "above":
            return down > abs(right)
        case "below":
            return -down > abs(right)
        case "next to":
            return abs(right) + abs(down) == 1
    raise ValueError(f"unknown relation {relation!r}")


# --- sentences ------------------------------------------------------------------------------------------------------


def sentence(requirement: Requirement) -> str:
    """`three red circles and a blue ring`, `a dotted red ring above a square and a cyan cross`."""
    if requirement.relation:
        first, second, *others = requirement.nouns
        return " and ".join(
            [f"a {first.name} {requirement.relation} a {second.name}", *(f"a {noun.name}" for noun in others)]
        )
    counts = {noun: requirement.nouns.count(noun) for noun in requirement.nouns}
    return " and ".join(
        f"{NUMBERS[n]} {plural(noun.name)}" if n > 1 else f"a {noun.name}" for noun, n in counts.items()
    )


def plural(name: str) -> str:
    """`red circle` -> `red circles`, `cross` -> `crosses`."""
    return name + ("es" if name.endswith("s") else "s")


_SINGULAR = {plural(shape): shape for shape in SHAPES}
_NOUN = re.compile(
    rf"(?P<count>a|{'|'.join(NUMBERS.values())})(?: (?P<texture>{'|'.join(TEXTURES[1:])}))?"
    rf"(?: (?P<color>{'|'.join(COLORS)}))? (?P<shape>{'|'.join((*SHAPES, *_SINGULAR))})"
)
_RELATION = re.compile(rf" ({'|'.join(RELATIONS)}) ")


def parse_prompt(text: str) -> Requirement | None:
    """The requirement that a prompt states; None if it is no sentence of this world."""
    head, *rest = text.split(" and ")
    around = _RELATION.split(head)
    relation = around[1] if len(around) == 3 else None
    parts = [around[0], around[2], *rest] if relation else [head, *rest]
    nouns: list[Noun] = []
    for part in parts:
        found = _NOUN.fullmatch(part)
        if found is None or (found["count"] == "a") == (found["shape"] in _SINGULAR):
            return None
        count = next((n for n, word in NUMBERS.items() if word == found["count"]), 1)
        shape = _SINGULAR.get(found["shape"], found["shape"])
        nouns += [Noun(found["texture"], found["color"], shape)] * count
    return Requirement(tuple(nouns), relation)


def prompt_words() -> tuple[str, ...]:
    """Every word that a prompt can hold."""
    relations = [word for relation in RELATIONS for word in relation.split()]
    words = ["a", "and", *NUMBERS.values(), *relations, *TEXTURES[1:], *COLORS, *SHAPES, *_SINGULAR]
    return tuple(dict.fromkeys(words))


# --- sampling -------------------------------------------------------------------------------------------------------


def _colored(rng: random.Random, texture: str | None = None) -> Noun:
    return Noun(texture, rng.choice(tuple(COLORS)), rng.choice(SHAPES))


def _two_colored(rng: random.Random) -> tuple[Noun, Noun]:
    first, second = _colored(rng), _colored(rng)
    return (first, second) if first != second else _two_colored(rng)


def _spatial(rng: random.Random) -> Requirement:
    return Requirement(_two_colored(rng), rng.choice(RELATIONS[:4]))


def _numeracy(rng: random.Random) -> Requirement:
    counted, other = _two_colored(rng)
    count = rng.choice(tuple(NUMBERS))
    extra = (other,) if count < 4 and rng.random() < 0.4 else ()
    return Requirement((counted,) * count + extra)


def _color(rng: random.Random) -> Requirement:
    return Requirement(_two_colored(rng))


def _shape(rng: random.Random) -> Requirement:
    color = rng.choice(tuple(COLORS))
    return Requirement(tuple(Noun(None, color, shape) for shape in rng.sample(SHAPES, 2)))


def _texture(rng: random.Random) -> Requirement:
    return Requirement(tuple(_colored(rng, texture) for texture in rng.sample(TEXTURES[1:], 2)))


def _object(rng: random.Random) -> Requirement:
    return Requirement(tuple(Noun(None, None, shape) for shape in rng.sample(SHAPES, rng.choice((2, 3)))))


def _complex(rng: random.Random) -> Requirement:
    third, second = _two_colored(rng)
    return Requirement((_colored(rng, rng.choice(TEXTURES[1:])), second, third), rng.choice(RELATIONS[:4]))


def _non(rng: random.Random) -> Requirement:
    return Requirement(_two_colored(rng), "next to")


_SAMPLERS: dict[str, Callable[[random.Random], Requirement]] = dict(
    zip(TASK_TYPES, (_spatial, _numeracy, _color, _shape, _texture, _object, _complex, _non), strict=True)
)


def sample_requirement(rng: random.Random, task_type: str, held_out: bool | None = None) -> Requirement:
    """A random requirement of the task type, from one side of the split (None: from both)."""
    while True:
        requirement = _SAMPLERS[task_type](rng)
        if held_out is None or is_held_out(requirement) == held_out:
            return requirement


def sample_scene(requirement: Requirement, rng: random.Random) -> Scene:
    """A random scene that satisfies the requirement, objects in the order of its nouns."""
    while True:
        scene = tuple(
            Item(noun.texture or "solid", noun.color or rng.choice(tuple(COLORS)), noun.shape, *cell)
            for noun, cell in zip(requirement.nouns, rng.sample(CELLS, len(requirement.nouns)), strict=True)
        )
        if requirement.relation is None or related(requirement.relation, scene[0], scene[1]):
            return scene


def is_held_out(requirement: Requirement) -> bool:
    """One canonical scene in five is held out, whatever its wording."""
    return hashlib.blake2b(requirement.canonical().encode(), digest_size=4).digest()[0] % 5 == 0


# --- rows -----------------------------------------------------------------------------------------------------------

_TRIES_FOR_A_NEW_SENTENCE = 50


def row(requirement: Requirement, task_type: str) -> dict[str, Any]:
    """The prompt's record in the T2I-R1 JSON Lines layout, its nouns as a detector or a VQA model looks for them."""
    names = list(dict.fromkeys(noun.name for noun in requirement.nouns))
    record: dict[str, Any] = {"prompt": sentence(requirement), "task_type": task_type, "nouns": names}
    if task_type in ("color", "shape", "texture", "complex"):
        record["attr_nouns"] = names
    if task_type == "spatial":
        first, second = requirement.nouns
        record["spatial_info"] = {"obj1": first.name, "obj2": second.name, "locality": requirement.relation}
    if task_type == "numeracy":
        counted = [noun.name for noun in requirement.nouns]
        record["numeracy_info"] = [{"obj_name": name, "num": counted.count(name)} for name in names]
    return record


def sample_rows(count: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
    """`count` rows from one side of the split, task types in turn.

    Some types have few sentences (`object` has 80 in all). Theirs repeat once they have run out, so that every type
    keeps its eighth of the rows.
    """
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index in range(count):
        task_type = TASK_TYPES[index % len(TASK_TYPES)]
        record = row(sample_requirement(rng, task_type, held_out), task_type)
        for _ in range(_TRIES_FOR_A_NEW_SENTENCE):
            if record["prompt"] not in seen:
                break
            record = row(sample_requirement(rng, task_type, held_out), task_type)
        seen.add(record["prompt"])
        rows.append(record)
    return rows


def prompts_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [record["prompt"] for record in rows]
