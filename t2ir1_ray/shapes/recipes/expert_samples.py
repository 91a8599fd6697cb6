"""Prompts with right and wrong images: what the experts that judge a whole prompt are trained on."""

import random
from typing import NamedTuple

import numpy as np

from t2ir1_ray.shapes.prompts import TASK_TYPES, Requirement, prompt_words, sample_requirement, sample_scene, sentence
from t2ir1_ray.shapes.recipes.corrupt import corrupt
from t2ir1_ray.shapes.recipes.expert_training import scramble
from t2ir1_ray.shapes.world import Scene, read_scene, render

__all__ = ["JudgedSample", "judged_sample", "prompt_words", "right_and_wrong"]


def right_and_wrong(rng: random.Random) -> tuple[str, np.ndarray, np.ndarray]:
    """A training prompt, an image of it, and one with a mistake or with half-formed objects."""
    requirement = sample_requirement(rng, rng.choice(TASK_TYPES), held_out=False)
    scene = sample_scene(requirement, rng)
    return sentence(requirement), render(scene), _wrong_image(requirement, scene, rng)


class JudgedSample(NamedTuple):
    """A prompt, an image and whether it is correct; `scene` is what can be read in the image."""

    requirement: Requirement
    prompt: str
    image: np.ndarray
    scene: Scene
    correct: bool


def judged_sample(
    rng: random.Random, wrong: float = 0.55, held_out: bool = False, task_type: str | None = None
) -> JudgedSample:
    """A right sample, or with probability `wrong` one with a mistake; of a random task type unless one is given."""
    requirement = sample_requirement(rng, task_type or rng.choice(TASK_TYPES), held_out)
    scene = sample_scene(requirement, rng)
    is_wrong = rng.random() < wrong
    image = _wrong_image(requirement, scene, rng) if is_wrong else render(scene)
    return JudgedSample(requirement, sentence(requirement), image, read_scene(image).items, not is_wrong)


def _wrong_image(requirement: Requirement, scene: Scene, rng: random.Random) -> np.ndarray:
    """One mistake (three in ten times two), or, one time in six, patches from elsewhere."""
    while True:
        if rng.random() < 1 / 6:
            image = scramble(render(scene), rng, rng.choice((0.03, 0.1)))
            seen = read_scene(image)
            if seen.unknown or not requirement.satisfied_by(seen.items):
                return image
            continue
        changed = corrupt(scene, rng)
        if rng.random() < 0.3:
            changed = corrupt(changed, rng)
        if not requirement.satisfied_by(changed):
            return render(changed)
