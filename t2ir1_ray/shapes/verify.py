"""The exact verifier of the shapes world: right or wrong, nothing between, from a prompt's text and pixels or a plan.

It measures held-out accuracy and is never part of the reward.
"""

import numpy as np

from t2ir1_ray.shapes.prompts import parse_prompt
from t2ir1_ray.shapes.world import parse_plan, read_scene


def verify_image(prompt: str, pixels: np.ndarray) -> bool:
    """Whether the image (24, 24, 3) shows exactly what the prompt asks for, every object well formed."""
    requirement, seen = parse_prompt(prompt), read_scene(pixels)
    return requirement is not None and not seen.unknown and requirement.satisfied_by(seen.items)


def verify_plan(prompt: str, plan: str) -> bool:
    """Whether an image drawn exactly after the plan would be right."""
    requirement, scene = parse_prompt(prompt), parse_plan(plan)
    return requirement is not None and scene is not None and requirement.satisfied_by(scene)


def image_follows_plan(plan: str, pixels: np.ndarray) -> bool:
    """Whether the image shows exactly the plan, right or wrong."""
    scene = parse_plan(plan)
    return scene is not None and read_scene(pixels).shows(scene)
