"""Reading prompt files and walking through them in a seeded, resumable order."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2ir1_ray.errors import UserError
from t2ir1_ray.records.schema import PROMPT_SCHEMA

TASK_TYPES = ("spatial", "numeracy", "color", "shape", "texture", "object", "complex", "non")
MAX_LINE_BYTES = 1 << 20


def read_prompts(path: str | Path) -> pa.Table:
    """Read the public T2I-R1 layout (`.jsonl`, `.json` with one object per line, `.parquet`), one row per prompt.

    Columns are those of `schema.PROMPT_SCHEMA`; a row without `prompt_id` gets its zero-based position, as text.
    Raises UserError that names the first bad line (1-based).
    """
    path = Path(path)
    if not str(path).isprintable():
        raise UserError(f"data.prompts: {str(path)!r:.200} holds control characters: give a path without")
    try:
        exists = path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"data.prompts: {str(path)[:200]}: {error.strerror}") from None
    if not exists:
        raise UserError(f"data.prompts: {path} does not exist: give a .jsonl, .json or .parquet file")
    if path.suffix not in (".jsonl", ".json", ".parquet"):
        raise UserError(f"data.prompts: {path} has the ending {path.suffix!r}: use .jsonl, .json or .parquet")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    prompts = [_normalise(row, index, f"{path}:{line}") for index, (line, row) in enumerate(rows)]
    if not prompts:
        raise UserError(f"data.prompts: {path} holds no prompts")
    first_line: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        if first_line.setdefault(prompt["prompt_id"], index) != index:
            raise UserError(f"data.prompts: {path}: prompt_id {prompt['prompt_id']!r} occurs twice: ids must be unique")
    return pa.Table.from_pylist(prompts, schema=PROMPT_SCHEMA)


def step_rows(num_prompts: int, prompts_per_step: int, seed: int, step: int) -> np.ndarray:
    """Row numbers (prompts_per_step,) int64 of optimisation step `step` (1, 2, ...): a function of its arguments only.

    Each epoch is a permutation of all prompts; a step may span two epochs. So a resumed run needs no data state, and
    every prompt is used equally often.
    """
    first = (step - 1) * prompts_per_step
    positions = np.arange(first, first + prompts_per_step)
    epochs = positions // num_prompts
    orders = {int(e): np.random.default_rng((seed, int(e))).permutation(num_prompts) for e in np.unique(epochs)}
    return np.array([orders[int(e)][p % num_prompts] for e, p in zip(epochs, positions, strict=True)])


def extra_rows(num_prompts: int, seed: int, step: int, attempt: int) -> list[int]:
    """All rows in the order in which they replace those of a step that gave no signal: a function of its arguments."""
    return np.random.default_rng((seed, step, attempt)).permutation(num_prompts).tolist()


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"data.prompts: {path}: {error.strerror}") from None
    with file:
        line = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            line += 1
            if len(raw) > MAX_LINE_BYTES:
                raise UserError(f"data.prompts: {path}:{line}: longer than {MAX_LINE_BYTES} bytes: not a prompt line")
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8"))
            except (UnicodeDecodeError, ValueError, RecursionError) as error:
                raise UserError(f"data.prompts: {path}:{line}: not a JSON object in UTF-8 ({error})") from None
            yield line, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        rows = pq.read_table(path).to_pylist()
    except Exception as error:  # Arrow's own, and Python's for values that are no Unicode, dates, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"data.prompts: {path}: not a Parquet file ({reason[:200]})") from None
    yield from enumerate(rows, start=1)


def _normalise(row: Any, index: int, place: str) -> dict[str, Any]:
    """One row with exactly the schema's fields. Empty containers stay empty, absent and null ones are null."""
    if not isinstance(row, Mapping):
        raise UserError(f"data.prompts: {place}: must be a JSON object, is {type(row).__name__}")
    prompt, task = row.get("prompt"), row.get("task_type")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"data.prompts: {place}: prompt must be a text that is not empty, is {_shown(prompt)}")
    if "\0" in prompt or not _encodable(prompt):
        raise UserError(f"data.prompts: {place}: prompt holds NUL or lone surrogate characters: remove them")
    if task not in TASK_TYPES:
        raise UserError(f"data.prompts: {place}: task_type is {_shown(task)}: use one of {', '.join(TASK_TYPES)}")
    prompt_id = str(index) if row.get("prompt_id") is None else row["prompt_id"]
    if type(prompt_id) not in (str, int) or not _encodable(str(prompt_id)):
        raise UserError(f"data.prompts: {place}: prompt_id must be a text or an integer, is {_shown(prompt_id)}")
    return {
        "prompt_id": str(prompt_id),
        "prompt": prompt,
        "task_type": task,
        "nouns": _strings(row.get("nouns"), "nouns", place),
        "attr_nouns": _strings(row.get("attr_nouns"), "attr_nouns", place),
        "spatial_info": _struct(row.get("spatial_info"), "spatial_info", ("obj1", "obj2", "locality"), place),
        "numeracy_info": _counts(row.get("numeracy_info"), place),
    }


def _strings(value: Any, field: str, place: str) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) and _encodable(item) for item in value):
        raise UserError(f"data.prompts: {place}: {field} must be a list of texts or null, is {_shown(value)}")
    return value


def _struct(value: Any, field: str, keys: tuple[str, ...], place: str) -> dict[str, str] | None:
    if not value:
        return None
    ok = isinstance(value, Mapping) and all(isinstance(value.get(key), str) and _encodable(value[key]) for key in keys)
    if not ok:
        raise UserError(f"data.prompts: {place}: {field} must be an object with the texts {', '.join(keys)}")
    return {key: value[key] for key in keys}


def _counts(value: Any, place: str) -> list[dict[str, Any]] | None:
    if value is None:
        return None
    items = value if isinstance(value, list) else [None]
    for item in items:
        name, num = (item.get("obj_name"), item.get("num")) if isinstance(item, Mapping) else (None, None)
        if not isinstance(name, str) or not _encodable(name) or type(num) is not int or not 0 <= num < 2**31:
            raise UserError(f"data.prompts: {place}: numeracy_info must be a list of {{obj_name: text, num: integer}}")
    return [{"obj_name": item["obj_name"], "num": item["num"]} for item in items]


def _shown(value: Any) -> str:
    return f"{value!r:.80}" if isinstance(value, str | int | float | None) else type(value).__name__


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
