"""`python -m t2ir1_ray.shapes.build`: rebuild every shipped checkpoint and prompt file from nothing.

Deterministic on one machine (fixed seeds, steps and threads); takes about an hour on one core. Ends with a
table of what was measured and writes it, with the sha256 of every file, into manifest.json.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rewards.experts import load_expert
from t2ir1_ray.config import SHIPPED, PolicyConfig
from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.errors import UserError
from t2ir1_ray.janus.policy import PromptFormat, load_model, load_tokenizer
from t2ir1_ray.shapes.prompts import TASK_TYPES, prompts_of, sample_rows
from t2ir1_ray.shapes.recipes.base_quality import base_quality
from t2ir1_ray.shapes.recipes.expert_training import auc
from t2ir1_ray.shapes.recipes.looking import answering_quality
from t2ir1_ray.shapes.recipes.sample import accuracy, sample
from t2ir1_ray.shapes.recipes.train_policy import HIDDEN, train_policy
from t2ir1_ray.shapes.recipes.train_vq import reconstruction_quality, train_vq
from t2ir1_ray.shapes.verify import verify_image

EXPERTS = ("hps", "git", "grounding_dino", "orm")
OPTIONAL_EXPERTS = ("yolo_world",) if find_spec("ultralytics") else ()
"""Built and measured where the extra `yolo` is installed."""
STAGES = ("prompts", "policy", *EXPERTS, *OPTIONAL_EXPERTS)
PROMPT_FILES = {"prompts_train.jsonl": (2000, 1, False), "prompts_heldout.jsonl": (512, 2, True)}
"""File -> (rows, seed, held out)."""


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m t2ir1_ray.shapes.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(str(SHIPPED)), help="folder of the weights")
    parser.add_argument("--only", default=",".join(STAGES), help=f"comma-separated, of {','.join(STAGES)}; or none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    wanted = [stage for stage in options.only.split(",") if stage not in ("", "none")]
    if unknown := sorted(set(wanted) - set(STAGES)):
        raise UserError(f"--only: {unknown[0]} is no stage: use {','.join(STAGES)}")
    if options.out.exists() and any(options.out.iterdir()) and not (options.out / "manifest.json").is_file():
        raise UserError(
            f"--out: {options.out} holds other things: choose an empty folder or one that this command made"
        )
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for stage in wanted:
            task = bar.add_task(stage, total=None)
            begin = time.perf_counter()
            found = _build(stage, options.out, options.seed, lambda text, task=task: bar.update(task, description=text))
            figures |= {f"{stage}/{name}": value for name, value in found.items()}
            figures[f"{stage}/seconds"] = round(time.perf_counter() - begin, 1)
        bar.add_task("measuring", total=None)
        figures |= measure(options.out)
    write_manifest(options.out, figures)
    table = Table("figure", "value")
    for name, value in sorted(figures.items()):
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)


def _build(stage: str, out: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Build one stage into its folder and return what its recipe reports."""
    out.mkdir(parents=True, exist_ok=True)
    if stage == "prompts":
        for name, (count, rows_seed, held_out) in PROMPT_FILES.items():
            rows = sample_rows(count, rows_seed, held_out)
            (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {}
    shutil.rmtree(out / stage, ignore_errors=True)
    if stage == "policy":
        vq = train_vq(HIDDEN, seed, progress)
        train_policy(vq, out / stage, seed, progress)
        return reconstruction_quality(vq)
    recipe = import_module(f"t2ir1_ray.shapes.recipes.train_{stage}")
    return recipe.train(out / stage, seed, progress)


def base_samples(
    policy: Path, count: int = 1024, seed: int = 11
) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """What the base policy draws for fresh training prompts: (rows, pixels (N, 24, 24, 3) uint8, right (N,) bool)."""
    rows = sample_rows(count, seed, held_out=False)
    model, form = _open_policy(policy)
    pixels = sample(model, form, prompts_of(rows), seed=seed).pixels
    right = [verify_image(row["prompt"], image) for row, image in zip(rows, pixels, strict=True)]
    return rows, pixels, np.array(right)


def measure(out: Path) -> dict[str, float]:
    """Held-out accuracy of the base at T=1 and greedy, with and without plan, by task type and habit; its share of
    right answers about images; AUC of experts against the verifier, by task type.

    An expert's AUC is over the images that it scores; that of the default run's sum is over all.
    """
    model, form = _open_policy(out / "policy")
    held_out = sample_rows(*PROMPT_FILES["prompts_heldout.jsonl"])
    prompts = prompts_of(held_out)
    figures = {}
    for name, temperature in (("T=1", 1.0), ("greedy", 0.0)):
        found = base_quality(held_out, sample(model, form, prompts, temperature))
        figures |= {f"base {name}/{key}": value for key, value in found.items()}
        found = accuracy(prompts, sample(model, form, prompts, temperature, planned=False))
        figures[f"base {name}, no plan/accuracy"] = found["accuracy"]
    figures["base/answers"] = answering_quality(model, form)["answers"]
    rows, pixels, right = base_samples(out / "policy")
    task_types = np.array([row["task_type"] for row in rows])
    total = np.zeros(len(rows))
    for name in (*EXPERTS, *OPTIONAL_EXPERTS):
        scores = load_expert(name, str(out / name), batch_size=64).score(pixels, rows).scores
        figures |= auc_by_task(name, scores, right, task_types)
        if name in EXPERTS:
            total += np.nan_to_num(scores)
    return figures | auc_by_task("sum", total, right, task_types)


def auc_by_task(name: str, scores: np.ndarray, right: np.ndarray, task_types: np.ndarray) -> dict[str, float]:
    """`AUC/<name>` and `AUC/<name>/<task type>` over the images with a score. scores: (N,) float, NaN where none."""
    figures = {}
    for key, chosen in (("", True), *((f"/{task_type}", task_types == task_type) for task_type in TASK_TYPES)):
        applies = np.isfinite(scores) & chosen
        if applies.any():
            figures[f"AUC/{name}{key}"] = auc(scores[applies], right[applies])
    return figures


def _open_policy(folder: Path) -> tuple[Any, PromptFormat]:
    form = PromptFormat(load_tokenizer(str(folder)), PolicyConfig(path=str(folder)))
    return load_model(str(folder)), form


def write_manifest(out: Path, figures: dict[str, Any]) -> None:
    """sha256 and size of every shipped file, and the figures of this build over those of earlier ones."""
    manifest = out / "manifest.json"
    old = json.loads(manifest.read_text())["figures"] if manifest.is_file() else {}
    files = {
        str(file.relative_to(out)): {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "bytes": file.stat().st_size,
        }
        for file in sorted(out.rglob("*"))
        if file.is_file() and file != manifest
    }
    manifest.write_text(json.dumps({"files": files, "figures": {**old, **figures}}, indent=1) + "\n")


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
