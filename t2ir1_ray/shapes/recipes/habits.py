"""What the base gets wrong out of habit: mistakes that go with kinds of prompts, and that greedy decoding repeats.

A random mistake is avoided by the most likely token, so a base that makes only those has nothing to learn but to sample
with less noise. A habit is the most likely outcome itself: wherever it applies, SHARE of the lessons have it and the
others are right. What is right is found among a few samples, and a rule learned from training prompts holds for
held-out ones, which share the words that the habits go by.

Habits of planning (semantic-CoT) go by what the prompt asks for, habits of drawing (token-CoT) by what the plan says:

| habit | where | what happens |
| --- | --- | --- |
| turned | `on the left of` and `above`, the first object red, yellow or purple | the two objects change places |
| too few | three of a kind | one of them is missing |
| same color | two objects without relation, the first red, green or blue | the second takes the first one's colour |
| same texture | a striped object and a dotted one, in this order | the second is striped too |
| blue for purple | the plan has a purple ring | it is drawn blue |
| stripes for dots | the plan has a dotted circle or square | it is drawn striped |
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from t2ir1_ray.shapes.prompts import Requirement, sample_scene
from t2ir1_ray.shapes.world import Item, Scene

SHARE = 0.65
"""Probability of the habit where one applies; what is right has the rest."""
TURNED_COLORS = ("red", "yellow", "purple")
BLEEDING_COLORS = ("red", "green", "blue")


def plan_habit(requirement: Requirement, scene: Scene) -> tuple[str, Scene] | None:
    """Name and outcome of the habit of planning for a right scene, objects in the order of the nouns; None: no habit.

    The outcome never satisfies the requirement.
    """
    return _first(PLANNING, requirement, scene)


def drawing_habit(planned: Scene) -> tuple[str, Scene] | None:
    """Name and outcome of the habit of drawing for a planned scene, right or wrong; None: no habit."""
    return _first(DRAWING, planned)


def habit_of(requirement: Requirement) -> str | None:
    """The habit of planning that a prompt calls up."""
    found = plan_habit(requirement, sample_scene(requirement, random.Random(0)))
    return found[0] if found else None


def _first(habits: dict[str, Callable[..., Scene | None]], *situation: Requirement | Scene) -> tuple[str, Scene] | None:
    outcomes = ((name, habit(*situation)) for name, habit in habits.items())
    return next(((name, scene) for name, scene in outcomes if scene is not None), None)


# --- planning -------------------------------------------------------------------------------------------------------


def _turned(requirement: Requirement, scene: Scene) -> Scene | None:
    first, second, *others = scene
    if requirement.relation not in ("on the left of", "above") or requirement.nouns[0].color not in TURNED_COLORS:
        return None
    return (replace(first, row=second.row, col=second.col), replace(second, row=first.row, col=first.col), *others)


def _too_few(requirement: Requirement, scene: Scene) -> Scene | None:
    return scene[:2] + scene[3:] if requirement.nouns.count(requirement.nouns[0]) == 3 else None


def _same_color(requirement: Requirement, scene: Scene) -> Scene | None:
    nouns, color = requirement.nouns, requirement.nouns[0].color
    if len(nouns) != 2 or requirement.relation or color not in BLEEDING_COLORS or color == nouns[1].color:
        return None
    return (scene[0], replace(scene[1], color=color)) if nouns[0].texture is None else None


def _same_texture(requirement: Requirement, scene: Scene) -> Scene | None:
    textures = [noun.texture for noun in requirement.nouns]
    return (scene[0], replace(scene[1], texture="striped")) if textures == ["striped", "dotted"] else None


# --- drawing --------------------------------------------------------------------------------------------------------


def _blue_for_purple(planned: Scene) -> Scene | None:
    return _redrawn(planned, lambda item: item.color == "purple" and item.shape == "ring", color="blue")


def _stripes_for_dots(planned: Scene) -> Scene | None:
    return _redrawn(
        planned, lambda item: item.texture == "dotted" and item.shape in ("circle", "square"), texture="striped"
    )


def _redrawn(planned: Scene, applies: Callable[[Item], bool], **change: str) -> Scene | None:
    drawn = tuple(replace(item, **change) if applies(item) else item for item in planned)
    return drawn if drawn != planned else None


PLANNING: dict[str, Callable[[Requirement, Scene], Scene | None]] = {
    "turned": _turned,
    "too few": _too_few,
    "same color": _same_color,
    "same texture": _same_texture,
}
DRAWING: dict[str, Callable[[Scene], Scene | None]] = {
    "blue for purple": _blue_for_purple,
    "stripes for dots": _stripes_for_dots,
}
