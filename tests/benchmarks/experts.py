"""`python -m tests.benchmarks.experts [--images N] [--out FILE.json]`: images per second of every shipped expert.

Batches of 1 and of 16 must give the same scores, or nothing is timed. They run in turns, so that a noisy machine
disturbs both; the best round counts. Beside it, by how much scores move in a narrower dtype.
"""

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rewards.base import Expert
from rewards.experts import load_expert
from t2ir1_ray.config import SHIPPED
from t2ir1_ray.shapes.build import base_samples

ROUNDS = 3
BATCHES = (1, 16)
CLOSE = 1e-4
"""Between the scores of an image in batches of both sizes."""
NARROW = ("float16", "bfloat16")
TARGET = 2.0


def rate(expert: Expert, pixels: object, rows: list) -> float:
    begin = time.perf_counter()
    expert.score(pixels, rows)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return len(rows) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shipped = Path(str(SHIPPED))
    rows, pixels, _ = base_samples(shipped / "policy", options.images)
    kinds = ["hps", "git", "grounding_dino", "orm", *(["yolo_world"] if find_spec("ultralytics") else [])]
    figures = {}
    for kind in kinds:
        experts = {size: load_expert(kind, str(shipped / kind), device=device, batch_size=size) for size in BATCHES}
        scores = [expert.score(pixels, rows).scores for expert in experts.values()]
        apart = float(np.nanmax(np.abs(np.subtract(*scores))))
        if not (apart <= CLOSE and np.array_equal(*map(np.isnan, scores))):
            raise SystemExit(f"{kind}: scores of batches of {BATCHES} are up to {apart:g} apart: nothing to compare")
        best = dict.fromkeys(BATCHES, 0.0)
        for _ in range(ROUNDS):
            for size, expert in experts.items():
                best[size] = max(best[size], rate(expert, pixels, rows))
        figures[kind] = {f"images_per_s_batch_{size}": round(value, 1) for size, value in best.items()}
        figures[kind]["ratio"] = round(best[16] / best[1], 2)
        figures[kind]["scores_apart"] = float(f"{apart:.1g}")
        for dtype in NARROW:
            narrow = load_expert(kind, str(shipped / kind), device=device, dtype=dtype, batch_size=16)
            moved = np.abs(narrow.score(pixels, rows).scores - scores[1])
            figures[kind][f"{dtype}_moves_by"] = float(f"{np.nanmax(moved):.1g}")
    table = Table("expert", "batch 1, images/s", "batch 16, images/s", "ratio", "scores apart", *NARROW)
    for kind, found in figures.items():
        table.add_row(kind, *map(str, found.values()))
    Console().print(table)
    result = {"device": device, "threads": 1, "images": options.images, "target": TARGET, "experts": figures}
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
