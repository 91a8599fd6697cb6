"""Score images from the shell: `python -m rewards.score --expert hps --prompts prompts.jsonl --images folder`.

An image belongs to the prompt whose line number (from 0) starts its name: `00012_3.png` is an image for the 13th line,
and there may be several for one prompt. A file of prompts is read as training reads it, but for `task_type`, which may
be absent: experts that need none do without. Prints one row per image and the mean. Exit code 2 with one line on bad
input.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import t2ir1_ray.errors
from rewards.base import ExpertScores, Row
from rewards.experts import DTYPES, EXPERTS, load_expert
from rewards.images import SUFFIXES
from t2ir1_ray.errors import RunError, UserError
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.records.textfile import read_lines

SHIPPED_WEIGHTS = Path(t2ir1_ray.errors.__file__).parent / "shapes" / "weights"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, score, print. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        rows = read_rows(arguments.prompts)
        files = match_images(arguments.images, len(rows))
        expert = load_expert(
            arguments.expert,
            str(arguments.checkpoint or SHIPPED_WEIGHTS / arguments.expert),
            device=arguments.device,
            dtype=arguments.dtype,
            **dict(map(parse_option, arguments.option)),
        )
        scores = expert.score([file.read_bytes() for file, _ in files], [rows[line] for _, line in files])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    show(arguments.expert, files, rows, scores)
    return 0


def read_rows(path: Path) -> list[Row]:
    """The prompts that images are numbered after. Raises UserError in one line.

    A blank line between prompts is refused: by lines and by prompts, the images behind it have different numbers.
    """
    rows = read_prompts(path, "--prompts", task_types=False).to_pylist()
    lines = read_lines(path, "--prompts") if path.suffix.lower() != ".parquet" else []
    for index, (number, _) in enumerate(lines if len(lines) == len(rows) else []):  # else a list over several lines
        if number != index + 1:
            raise UserError(f"--prompts: {path}:{index + 1}: a blank line: images are numbered by lines: remove it")
    return rows


def match_images(folder: Path, prompts: int) -> list[tuple[Path, int]]:
    """(image file, prompt number) in order of the file names. Raises UserError if a name has no valid number."""
    if not folder.is_dir():
        raise UserError(f"--images: {folder} is no folder")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"--images: {folder} holds no image ({', '.join(SUFFIXES)})")
    matched = []
    for file in files:
        number = re.match(r"[0-9]+", file.name)
        if number is None or int(number[0]) >= prompts:
            raise UserError(f"--images: {file.name}: the name must start with a prompt's number, 0 to {prompts - 1}")
        matched.append((file, int(number[0])))
    return matched


def parse_option(text: str) -> tuple[str, Any]:
    """ "temperature=0.3" -> ("temperature", 0.3); values are JSON where they can be, else text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--option: {text!r}: write key=value")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def show(name: str, files: Sequence[tuple[Path, int]], rows: Sequence[Row], scores: ExpertScores) -> None:
    """One table row per image, then the mean over those that have a score."""
    table = Table("image", "prompt", "task", "status", name)
    for index, (file, line) in enumerate(files):
        value = f"{scores.scores[index]:.4f}" if scores.status[index] == "ok" else scores.errors[index] or ""
        table.add_row(file.name, rows[line]["prompt"], rows[line].get("task_type") or "", scores.status[index], value)
    scored = scores.scores[np.isfinite(scores.scores)]
    table.caption = f"mean of {len(scored)}: {scored.mean():.4f}" if len(scored) else "no image has a score"
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rewards.score", description=__doc__.split("\n")[0])
    parser.add_argument("--expert", required=True, choices=list(EXPERTS))
    parser.add_argument("--prompts", required=True, type=Path, help="file in the layout of T2I-R1")
    parser.add_argument("--images", required=True, type=Path, help="folder of images named by prompt number")
    parser.add_argument("--checkpoint", help="folder, file or hub id; default: the tiny expert of the shapes world")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the expert; repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
