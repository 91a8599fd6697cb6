"""Reading prompt files and walking through them in a seeded, resumable order."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t2ir1_ray.errors import UserError
from t2ir1_ray.records.schema import PROMPT_SCHEMA
from t2ir1_ray.records.textfile import MAX_LINE_BYTES as MAX_LINE_BYTES
from t2ir1_ray.records.textfile import check_file, read_lines, read_rows

TASK_TYPES = ("spatial", "numeracy", "color", "shape", "texture", "object", "complex", "non")
ENDINGS = (".jsonl", ".json", ".parquet")
"""Of files that can hold the fields of a prompt, lists and objects among them."""
TABLE_ENDINGS = (*ENDINGS, ".csv", ".tsv")
PROMPT_COLUMNS = ("prompt", "prompts", "caption", "text")
"""Where a file that was not made for training has its texts, in order of preference; case does not matter."""


def read_prompts(path: str | Path, option: str = "data.prompts", task_types: bool = True) -> pa.Table:
    """Read the public T2I-R1 layout (`.jsonl`, `.json` with one object per line, `.parquet`), one row per prompt.

    Columns are those of `schema.PROMPT_SCHEMA`; a row without `prompt_id` gets its zero-based position, as text.
    `task_types=False`: rows may lack a `task_type`, which is null then.
    Raises UserError that begins with `option` and names the first bad line (1-based).
    """
    path = Path(path)
    rows = enumerate(read_rows(path, option, ENDINGS))
    prompts = [_normalise(row, index, place, task_types) for index, (place, row) in rows]
    if not prompts:
        raise UserError(f"{option}: {path} holds no prompts")
    first_line: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        if first_line.setdefault(prompt["prompt_id"], index) != index:
            raise UserError(f"{option}: {path}: prompt_id {prompt['prompt_id']!r:.80} occurs twice: ids must be unique")
    return pa.Table.from_pylist(prompts, schema=PROMPT_SCHEMA)


def read_texts(path: Path, option: str) -> list[str]:
    """Prompts alone: of a `.txt` with one on each line, or of a file with rows and a column for them.

    Columns are named as in `PROMPT_COLUMNS`, so that GenEval's metadata, WISE's files, DrawBench and the like are read.
    Raises UserError in one line; an ending that is not known is refused.
    """
    check_file(path, option)
    if path.suffix.lower() == ".txt":
        places = [(f"{option}: {path}:{number}", text) for number, text in read_lines(path, option)]
    elif path.suffix.lower() in TABLE_ENDINGS:
        rows = read_rows(path, option, TABLE_ENDINGS)
        places = [(place, row[_prompt_column(row, place)]) for place, row in rows]
    else:
        endings = ", ".join((".txt", *TABLE_ENDINGS))
        raise UserError(f"{option}: {path} has the ending {path.suffix!r}: use {endings}")
    return [_text(text, place) for place, text in places]


def step_rows(num_prompts: int, prompts_per_step: int, seed: int, step: int) -> np.ndarray:
    """Row numbers (prompts_per_step,) int64 of optimisation step `step` (1, 2, ...): a function of its arguments only.

    Each epoch is a permutation of all prompts; a step may span two epochs, and has no prompt twice even then. So a
    resumed run needs no data state, and every prompt is used equally often.
    """
    first = (step - 1) * prompts_per_step
    positions = np.arange(first, first + prompts_per_step)
    epochs = positions // num_prompts
    orders = _epoch_orders(num_prompts, prompts_per_step, seed, int(epochs[0]), int(epochs[-1]))
    return np.array([orders[int(e)][p % num_prompts] for e, p in zip(epochs, positions, strict=True)])


def extra_rows(num_prompts: int, seed: int, step: int, attempt: int) -> list[int]:
    """All rows in the order in which they replace those of a step that gave no signal: a function of its arguments."""
    return np.random.default_rng((seed, step, attempt)).permutation(num_prompts).tolist()


def _epoch_orders(num_prompts: int, prompts_per_step: int, seed: int, first: int, last: int) -> dict[int, np.ndarray]:
    """Epoch -> (num_prompts,) its rows: the permutation of (seed, epoch), where the end of the epoch before allows it.

    A step that begins in the epoch before takes its last rows (`tail`) and the first `head` places of this one.
    A row that is in both changes places with the next one behind `head` that is not.
    """
    since_border = first % (prompts_per_step // math.gcd(num_prompts, prompts_per_step))
    # What changes places stands in the first 1.5 steps: the end of a long epoch is that of its plain permutation.
    begin = first - (since_border if num_prompts < 3 * prompts_per_step else min(1, since_border))
    orders = {e: np.random.default_rng((seed, e)).permutation(num_prompts) for e in range(begin, last + 1)}
    for epoch in range(begin + 1, last + 1):
        order, head = orders[epoch], -epoch * num_prompts % prompts_per_step
        tail = orders[epoch - 1][max(0, num_prompts - (prompts_per_step - head)) :] if head else ()
        both = np.flatnonzero(np.isin(order[:head], tail))
        free = head + np.flatnonzero(~np.isin(order[head:], tail))[: len(both)]
        both = both[: len(free)]  # fewer prompts than a step has, which training refuses: as distinct as can be
        order[both], order[free] = order[free], order[both]
    return orders


def _normalise(row: Any, index: int, place: str, task_types: bool) -> dict[str, Any]:
    """One row with exactly the schema's fields. Empty containers stay empty, absent and null ones are null."""
    if not isinstance(row, Mapping):
        raise UserError(f"{place}: must be a JSON object, is {type(row).__name__}")
    prompt, task = _text(row.get("prompt"), place), row.get("task_type")
    if task not in TASK_TYPES and (task_types or task is not None):
        raise UserError(f"{place}: task_type is {_shown(task)}: use one of {', '.join(TASK_TYPES)}")
    prompt_id = str(index) if row.get("prompt_id") is None else row["prompt_id"]
    if type(prompt_id) not in (str, int) or not _encodable(str(prompt_id)):
        raise UserError(f"{place}: prompt_id must be a text or an integer, is {_shown(prompt_id)}")
    return {
        "prompt_id": str(prompt_id),
        "prompt": prompt,
        "task_type": task,
        "nouns": _strings(row.get("nouns"), "nouns", place),
        "attr_nouns": _strings(row.get("attr_nouns"), "attr_nouns", place),
        "spatial_info": _struct(row.get("spatial_info"), "spatial_info", ("obj1", "obj2", "locality"), place),
        "numeracy_info": _counts(row.get("numeracy_info"), place),
    }


def _prompt_column(row: Any, place: str) -> str:
    if not isinstance(row, Mapping):
        raise UserError(f"{place}: must be a JSON object, is {type(row).__name__}")
    columns = {str(name).strip().lower(): name for name in reversed(row)}
    found = [columns[name] for name in PROMPT_COLUMNS if name in columns]
    if not found:
        names = ", ".join(map(str, row))
        wanted = " or ".join(PROMPT_COLUMNS)
        raise UserError(f"{place}: no column {wanted} among {names!r:.200}: rename the one that holds the prompts")
    return found[0]


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: prompt must be a text that is not empty, is {_shown(value)}")
    if "\0" in value or not _encodable(value):
        raise UserError(f"{place}: prompt holds NUL or lone surrogate characters: remove them")
    return value


def _strings(value: Any, field: str, place: str) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) and _encodable(item) for item in value):
        raise UserError(f"{place}: {field} must be a list of texts or null, is {_shown(value)}")
    return value


def _struct(value: Any, field: str, keys: tuple[str, ...], place: str) -> dict[str, str] | None:
    if not value or _all_null(value):
        return None
    ok = isinstance(value, Mapping) and all(isinstance(value.get(key), str) and _encodable(value[key]) for key in keys)
    if not ok:
        raise UserError(f"{place}: {field} must be an object with the texts {', '.join(keys)}")
    return {key: value[key] for key in keys}


def _counts(value: Any, place: str) -> list[dict[str, Any]] | None:
    if value is None or _all_null(value):
        return None
    items = value if isinstance(value, list) else [None]
    for item in items:
        name, num = (item.get("obj_name"), item.get("num")) if isinstance(item, Mapping) else (None, None)
        if not isinstance(name, str) or not _encodable(name) or type(num) is not int or not 0 <= num < 2**31:
            raise UserError(f"{place}: numeracy_info must be a list of {{obj_name: text, num: integer}}")
    return [{"obj_name": item["obj_name"], "num": item["num"]} for item in items]


def _all_null(value: Any) -> bool:
    """Whether an object, or each of a list of them, has no value in it: how columnar formats say that it is absent."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, Mapping) and _all_null(item) for item in value)
    return isinstance(value, Mapping) and all(item is None or _all_null(item) for item in value.values())


def _shown(value: Any) -> str:
    return f"{value!r:.80}" if isinstance(value, str | int | float | None) else type(value).__name__


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
