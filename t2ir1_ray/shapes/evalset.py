"""What the base policy really draws for held-out prompts, with the exact verdicts: experts are measured on this."""

from pathlib import Path
from typing import Any

import numpy as np

from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.policy import PromptFormat, load_model, load_tokenizer
from t2ir1_ray.shapes.prompts import prompts_of, sample_rows
from t2ir1_ray.shapes.sample import sample
from t2ir1_ray.shapes.verify import verify_image


def base_samples(policy_dir: Path | str, n: int, seed: int) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """`n` held-out prompts, all task types in turn, and one image of each at temperature 1.

    Returns prompt rows, pixels (n, 24, 24, 3) uint8, and whether each image is exactly right (n,) bool.
    """
    rows = sample_rows(n, seed, held_out=True)
    model = load_model(str(policy_dir))
    form = PromptFormat(load_tokenizer(str(policy_dir)), PolicyConfig(path=str(policy_dir)))
    prompts = prompts_of(rows)
    pixels = sample(model, form, prompts, temperature=1.0, seed=seed).pixels
    right = np.array([verify_image(prompt, image) for prompt, image in zip(prompts, pixels, strict=True)])
    return rows, pixels, right
