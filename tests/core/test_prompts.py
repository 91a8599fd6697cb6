"""The prompt reader: the public layout, order, and one line for every kind of bad input."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ir1_ray.errors import UserError
from t2ir1_ray.records.prompts import MAX_LINE_BYTES, read_prompts, step_rows

ROWS = [
    {
        "prompt": "a photo of a car below a zebra",
        "nouns": ["car", "zebra"],
        "spatial_info": {"obj1": "car", "obj2": "zebra", "locality": "below"},
        "task_type": "spatial",
    },
    {
        "prompt": "three red cups",
        "nouns": ["cup"],
        "numeracy_info": [{"obj_name": "cup", "num": 3}],
        "task_type": "numeracy",
    },
    {"prompt": "a {brace} <begin_of_image> ünïcode ✓", "nouns": [], "attr_nouns": ["a b"], "task_type": "color"},
    {"prompt": "no nouns at all", "nouns": None, "attr_nouns": None, "task_type": "non", "prompt_id": "mine"},
]


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_all_formats_give_the_same_table(tmp_path: Path, ending: str) -> None:
    table = read_prompts(write(tmp_path / "p.jsonl", ROWS))
    if ending == "parquet":
        pq.write_table(table, tmp_path / "p.parquet")
    else:
        write(tmp_path / f"p.{ending}", ROWS)
    assert read_prompts(tmp_path / f"p.{ending}").equals(table)
    for row, read in zip(ROWS, table.to_pylist(), strict=True):
        assert all(read[key] == value for key, value in row.items())
    assert table["prompt_id"].to_pylist() == ["0", "1", "2", "mine"]


BAD_LINES = {
    b"{": "JSON",
    b"\xff\xfe{}": "UTF-8",
    b"[1]": "JSON object",
    b'{"task_type": "color"}': "prompt must be",
    b'{"prompt": "  ", "task_type": "color"}': "prompt must be",
    b'{"prompt": "a\\u0000b", "task_type": "color"}': "NUL",
    b'{"prompt": "\\ud800", "task_type": "color"}': "surrogate",
    b'{"prompt": "x", "task_type": "colour"}': "task_type",
    b'{"prompt": "x", "task_type": "color", "nouns": "car"}': "nouns",
    b'{"prompt": "x", "task_type": "spatial", "spatial_info": {"obj1": "a"}}': "spatial_info",
    b'{"prompt": "x", "task_type": "numeracy", "numeracy_info": [{"obj_name": "a", "num": "2"}]}': "numeracy_info",
    b'{"prompt": "x", "task_type": "numeracy", "numeracy_info": [{"obj_name": "a", "num": 9999999999}]}': "integer",
    b'{"prompt": "' + b"x" * MAX_LINE_BYTES + b'", "task_type": "color"}': "longer than",
    b"[" * 100_000: "JSON",
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(UserError, match=message) as error:
        read_prompts(path)
    assert f"{path}:3" in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"no parquet")
    (tmp_path / "p.jsonl").write_text("\n")
    (tmp_path / "p.csv").write_text("prompt\n")
    write(tmp_path / "twice.jsonl", [ROWS[3], ROWS[3]])
    for name, message in {
        "none.jsonl": "does not exist",
        "p.parquet": "not a Parquet file",
        "p.jsonl": "no prompts",
        "p.csv": "ending",
        "twice.jsonl": "occurs twice",
    }.items():
        with pytest.raises(UserError, match=message):
            read_prompts(tmp_path / name)


@settings(deadline=None)  # of a machine that others use
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_order_uses_every_prompt_equally_and_is_a_function_of_the_step(prompts: int, size: int, seed: int) -> None:
    steps = [step_rows(prompts, size, seed, step) for step in range(1, 2 * prompts + 1)]
    np.testing.assert_array_equal(steps[-1], step_rows(prompts, size, seed, 2 * prompts))
    counts = np.bincount(np.concatenate(steps), minlength=prompts)
    assert counts.max() - counts.min() <= 1
    epoch = np.concatenate(steps)[:prompts]
    assert sorted(epoch) == list(range(prompts))
