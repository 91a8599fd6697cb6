"""The samples of a dumped step, small enough to travel inside a page."""

import base64
import io
import math
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from t2ir1_ray.errors import UserError

COLUMNS = {
    "prompt_id": pa.types.is_string,
    "prompt": pa.types.is_string,
    "task_type": pa.types.is_string,
    "plan": pa.types.is_string,
    "policy_version": pa.types.is_integer,
    "image": pa.types.is_binary,
    "reward": pa.types.is_floating,
    "advantage": pa.types.is_floating,
}
EDGE = 128  # px: larger images become WebP thumbnails, smaller ones stay the PNG that they are


def read_dump(path: Path) -> list[dict[str, Any]]:
    """The groups of one step. G samples each; numbers are None where the dump has none.

    `prompt, task, version, plans (G,), images (G,) data URIs, rewards (G,), advantages (G,), plan_advantages (G,),
    scores expert -> (G,), mean, low, high` of the rewards, and `state`: `spread`, `equal` (zero variance: nothing to
    learn) or `dropped`.
    Raises UserError if the file is broken or no dump.
    """
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        bad = [name for name, kind in COLUMNS.items() if name not in schema.names or not kind(schema.field(name).type)]
        if bad:
            raise UserError(f"RUN: {path} is no dump of rollouts: it lacks the column {bad[0]}, or its type is another")
        experts = [name for name in schema.names if name.startswith("reward/")]
        plans = [name for name in schema.names if name == "semantic_advantage"]  # where plans are credited apart
        rows = file.read(columns=[*COLUMNS, *plans, *experts]).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"RUN: {path} is not whole Parquet ({reason}): wait if it is new, or remove it") from None
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["prompt_id"])]
    return [_group(group, experts, path) for group in groups]


def _group(rows: list[dict[str, Any]], experts: list[str], path: Path) -> dict[str, Any]:
    rewards = [_number(row["reward"]) for row in rows]
    scores = {name.removeprefix("reward/"): [_number(row[name]) for row in rows] for name in experts}
    known = [reward for reward in rewards if reward is not None]
    return {
        "prompt": rows[0]["prompt"] or "",
        "task": rows[0]["task_type"] or "",
        "version": rows[0]["policy_version"],
        "plans": [row["plan"] or "" for row in rows],
        "images": [_thumbnail(row["image"], path) for row in rows],
        "rewards": rewards,
        "advantages": [_number(row["advantage"]) for row in rows],
        "plan_advantages": [_number(row.get("semantic_advantage", row["advantage"])) for row in rows],
        "scores": scores,
        "mean": _number(sum(known) / len(known)) if known else None,
        "low": min(known, default=None),
        "high": max(known, default=None),
        "state": _state(known, scores),
    }


def _state(rewards: list[float], scores: dict[str, list[float | None]]) -> str:
    """A group that the learner filtered for zero variance has no rewards left, but its experts' scores tell."""
    if rewards:
        return "spread" if max(rewards) > min(rewards) else "equal"
    any_score = any(value is not None for values in scores.values() for value in values)
    return "equal" if any_score and all(len(set(values)) == 1 for values in scores.values()) else "dropped"


def _number(value: float | None) -> float | None:
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def _thumbnail(data: bytes | None, path: Path) -> str:
    """A data URI."""
    try:
        with Image.open(io.BytesIO(data or b""), formats=["PNG"]) as image:
            image.load()
            if max(image.size) <= EDGE:
                return "data:image/png;base64," + base64.b64encode(data or b"").decode()
            image.thumbnail((EDGE, EDGE))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=80)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f"RUN: {path} holds an image that is not a whole PNG: remove the file") from None
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
