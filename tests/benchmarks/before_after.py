"""`python -m tests.benchmarks.before_after CHECKPOINT [--out FILE.png]`: the shapes policy before and after training.

Samples of both policies for the same held-out prompts at T = 1, green where the exact verifier finds them right.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from t2ir1_ray.config import SHIPPED, PolicyConfig
from t2ir1_ray.janus.policy import PromptFormat, load_model, load_tokenizer
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.shapes.recipes.sample import sample
from t2ir1_ray.shapes.verify import verify_image

TASK_TYPES = ("complex", "numeracy", "spatial", "texture")
SAMPLES, TILE, FRAME = 8, 72, 4
RIGHT, WRONG = (46, 160, 67), (208, 215, 222)


def held_out_prompts() -> list[str]:
    """The first one of each task type."""
    rows = read_prompts(SHIPPED / "prompts_heldout.jsonl").to_pylist()
    return [next(row["prompt"] for row in rows if row["task_type"] == task) for task in TASK_TYPES]


def drawn(checkpoint: Path, wanted: list[str], seed: int) -> np.ndarray:
    """(prompts, SAMPLES, 24, 24, 3) uint8."""
    model = load_model(str(checkpoint))
    form = PromptFormat(load_tokenizer(str(checkpoint)), PolicyConfig(path=str(checkpoint)))
    prompts = [prompt for prompt in wanted for _ in range(SAMPLES)]
    pixels = sample(model, form, prompts, seed=seed).pixels
    return pixels.reshape(len(wanted), SAMPLES, *pixels.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("before_after.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prompts = held_out_prompts()
    halves = {
        "before": drawn(Path(str(SHIPPED)) / "policy", prompts, options.seed),
        "after": drawn(options.checkpoint, prompts, options.seed),
    }
    cell, line, gap = TILE + 2 * FRAME, 24, 24
    width = 2 * SAMPLES * cell + gap
    sheet = Image.new("RGB", (width, line + len(prompts) * (line + cell)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for half, (name, images) in enumerate(halves.items()):
        left = half * (SAMPLES * cell + gap)
        verdicts = [[verify_image(p, image) for image in row] for p, row in zip(prompts, images, strict=True)]
        draw.text((left + FRAME, 2), f"{name}: {np.sum(verdicts)} of {len(prompts) * SAMPLES} right", "black", font)
        for row, prompt in enumerate(prompts):
            top = line + row * (line + cell)
            if half == 0:
                draw.text((FRAME, top + 4), prompt, (87, 96, 106), font)
            for column in range(SAMPLES):
                x, y = left + column * cell, top + line
                colour = RIGHT if verdicts[row][column] else WRONG
                draw.rectangle((x + 1, y + 1, x + cell - 2, y + cell - 2), fill=colour)
                tile = Image.fromarray(images[row, column]).resize((TILE, TILE), Image.Resampling.NEAREST)
                sheet.paste(tile, (x + FRAME, y + FRAME))
    sheet.quantize(128).save(options.out, optimize=True)
    print(options.out)


if __name__ == "__main__":
    main()
