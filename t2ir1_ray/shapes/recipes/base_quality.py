"""What the manifest says of the base: its accuracy by task type, and how often a habit yields to what is right."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2ir1_ray.shapes.prompts import TASK_TYPES, parse_prompt, prompts_of
from t2ir1_ray.shapes.recipes.habits import drawing_habit, habit_of
from t2ir1_ray.shapes.recipes.sample import Samples, accuracy
from t2ir1_ray.shapes.verify import image_follows_plan, verify_plan
from t2ir1_ray.shapes.world import parse_plan


def base_quality(rows: Sequence[dict[str, Any]], samples: Samples) -> dict[str, float]:
    """`accuracy`, `plan` and `follows` (see `sample.accuracy`), each also as `<figure>/<task type>`, and
    `habit/<name>`: of the plans for prompts that call up a habit of planning, the share that is right; of the images
    for plans that call up a habit of drawing, the share that follows its plan.

    One sample with a plan for every row.
    """
    prompts = prompts_of(rows)
    figures = accuracy(prompts, samples)
    task_types = np.array([row["task_type"] for row in rows])
    for task_type in TASK_TYPES:
        chosen = np.flatnonzero(task_types == task_type)
        part = Samples([samples.plans[i] for i in chosen], samples.pixels[chosen])
        found = accuracy([prompts[i] for i in chosen], part)
        figures |= {f"{name}/{task_type}": value for name, value in found.items()}
    return figures | {f"habit/{name}": float(np.mean(right)) for name, right in yielding(prompts, samples).items()}


def yielding(prompts: Sequence[str], samples: Samples) -> dict[str, list[bool]]:
    """Habit -> for every sample where it applies, whether the sample is right all the same."""
    found: dict[str, list[bool]] = defaultdict(list)
    for prompt, plan, pixels in zip(prompts, samples.plans, samples.pixels, strict=True):
        if name := habit_of(parse_prompt(prompt)):
            found[name].append(verify_plan(prompt, plan))
        if (planned := parse_plan(plan)) and (habit := drawing_habit(planned)):
            found[habit[0]].append(image_follows_plan(plan, pixels))
    return found
