"""The prompt reader: the public layout, order, and one line for every kind of bad input."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
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


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_order_uses_every_prompt_equally_and_is_a_function_of_the_step(prompts: int, size: int, seed: int) -> None:
    steps = [step_rows(prompts, size, seed, step) for step in range(1, 2 * prompts + 1)]
    np.testing.assert_array_equal(steps[-1], step_rows(prompts, size, seed, 2 * prompts))
    counts = np.bincount(np.concatenate(steps), minlength=prompts)
    assert counts.max() - counts.min() <= 1
    epoch = np.concatenate(steps)[:prompts]
    assert sorted(epoch) == list(range(prompts))


def plain_order(prompts: int, size: int, seed: int, step: int) -> np.ndarray:
    """Epochs as permutations that know nothing of each other: what runs began with before borders were mended."""
    positions = np.arange((step - 1) * size, step * size)
    return np.array([np.random.default_rng((seed, p // prompts)).permutation(prompts)[p % prompts] for p in positions])


@given(st.integers(1, 30), st.integers(0, 25), st.integers(0, 5))
def test_no_prompt_is_twice_in_a_step(size: int, more: int, seed: int) -> None:
    prompts = size + more
    steps = [step_rows(prompts, size, seed, step) for step in range(1, 2 * prompts + 1)]
    assert all(len(set(rows.tolist())) == size for rows in steps)
    epochs = np.concatenate(steps).reshape(-1, prompts)  # size whole epochs, twice
    assert (np.sort(epochs, axis=1) == np.arange(prompts)).all()


@pytest.mark.parametrize(("prompts", "size"), [(12, 4), (5, 5), (64, 16)])
def test_steps_that_no_border_falls_into_are_what_they_were(prompts: int, size: int) -> None:
    for step in range(1, 4 * prompts // size):
        np.testing.assert_array_equal(step_rows(prompts, size, 3, step), plain_order(prompts, size, 3, step))


def test_a_border_moves_only_what_was_twice_in_its_step() -> None:
    for seed in range(50):
        before = np.concatenate([plain_order(100, 16, seed, step) for step in range(1, 26)]).reshape(4, 100)
        after = np.concatenate([step_rows(100, 16, seed, step) for step in range(1, 26)]).reshape(4, 100)
        np.testing.assert_array_equal(after[0], before[0])
        for epoch in range(1, 4):
            tail = before[epoch - 1][-(epoch * 100 % 16) :]
            head = -epoch * 100 % 16
            twice = len(set(tail) & set(before[epoch][:head]))
            assert (after[epoch] != before[epoch]).sum() == 2 * twice


NULLS = {
    "structs of nulls": {
        "spatial_info": [{"obj1": None, "obj2": None, "locality": None}, {"obj1": "a", "obj2": "b", "locality": "near"}]
    },
    "lists of structs of nulls": {
        "numeracy_info": [[{"obj_name": None, "num": None}], [{"obj_name": "cup", "num": 2}]],
    },
    "columns of nulls": {"nouns": [None, ["a"]], "attr_nouns": [None, None], "prompt_id": [None, "mine"]},
}


@pytest.mark.parametrize("columns", NULLS.values(), ids=NULLS)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_fields_that_hold_nothing_are_absent(columns: dict[str, list], ending: str, tmp_path: Path) -> None:
    table = pa.table({"prompt": ["one", "two"], "task_type": ["object", "object"], **columns})
    if ending == "parquet":
        pq.write_table(table, tmp_path / "p.parquet")
    else:
        write(tmp_path / "p.jsonl", table.to_pylist())
    first, second = read_prompts(tmp_path / f"p.{ending}").to_pylist()
    for name, (_, full) in columns.items():
        assert first[name] == ("0" if name == "prompt_id" else None)
        assert second[name] == full


def test_a_struct_that_lacks_one_value_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "x", "task_type": "spatial", "spatial_info": {"obj1": "a", "obj2": None, "locality": None}}
    with pytest.raises(UserError, match="spatial_info must be"):
        read_prompts(write(tmp_path / "p.jsonl", [row]))


def test_every_line_of_a_refusal_begins_with_what_brought_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^eval\.prompts: .*p\.jsonl:1: task_type"):
        read_prompts(write(tmp_path / "p.jsonl", [{"prompt": "x"}]), "eval.prompts")
    table = read_prompts(tmp_path / "p.jsonl", "--prompts", task_types=False)
    assert table["task_type"].to_pylist() == [None]
