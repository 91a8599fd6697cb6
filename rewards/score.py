"""Score images from the shell: `python -m rewards.score --expert hps --prompts prompts.jsonl --images folder`.

An image belongs to the prompt whose line number (from 0) starts its name: `00012_3.png` is an image for the 13th line,
and there may be several for one prompt. Prints one row per image and the mean. Exit code 2 with one line on bad input.
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
from t2ir1_ray.errors import RunError, UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
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
    """Prompts from JSON Lines. Raises UserError naming the line that is not an object with a `prompt`."""
    if not path.is_file():
        raise UserError(f"--prompts: {path} does not exist: give a JSON Lines file with one prompt per line")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"--prompts: {path}:{number}: not JSON ({error.msg}): one object per line") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise UserError(f"--prompts: {path}:{number}: no text in the field 'prompt'")
        rows.append(row)
    return rows


def match_images(folder: Path, prompts: int) -> list[tuple[Path, int]]:
    """(image file, prompt number) in order of the file names. Raises UserError if a name has no valid number."""
    if not folder.is_dir():
        raise UserError(f"--images: {folder} is no folder")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"--images: {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    matched = []
    for file in files:
        number = re.match(r"\d+", file.name)
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
    parser.add_argument("--prompts", required=True, type=Path, help="JSON Lines in the layout of T2I-R1")
    parser.add_argument("--images", required=True, type=Path, help="folder of images named by prompt number")
    parser.add_argument("--checkpoint", help="folder, file or hub id; default: the tiny expert of the shapes world")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the expert; repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
