"""Files of prompts as people's tools write them: marks, line ends, tables, layouts of other benchmarks."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2ir1_ray.benchmarks.geneval import GenEval
from t2ir1_ray.benchmarks.t2i_compbench import CompBench
from t2ir1_ray.benchmarks.wise import Wise
from t2ir1_ray.records.prompts import read_prompts, read_texts
from t2ir1_ray.records.textfile import read_lines
from tests.core.refusals import refused

MARK = "\ufeff"
SEPARATORS = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e".split(" ")
"""Where `str.splitlines` ends a line and a text file does not."""


def file_of(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", MARK])
def test_lines_end_where_editors_end_them_and_nowhere_else(mark: str, end: str, tmp_path: Path) -> None:
    prompts = [f"a red{separator}ring" for separator in SEPARATORS]
    file = file_of(tmp_path, "p.txt", mark + end.join(["  first", "", *prompts, " "]))
    assert read_texts(file, "--prompts") == ["first", *prompts]
    assert [number for number, _ in read_lines(file, "--prompts")] == [1, *range(3, 3 + len(prompts))]


def test_files_that_were_put_together_have_a_mark_at_each_seam(tmp_path: Path) -> None:
    assert read_texts(file_of(tmp_path, "p.txt", f"{MARK}a\n{MARK}b\n"), "--prompts") == ["a", "b"]


def test_json_with_marks_and_separators_is_read_by_every_reader(tmp_path: Path) -> None:
    prompt = "a red" + "".join(SEPARATORS) + "ring"

    def jsonl(row: dict) -> str:
        return MARK + json.dumps(row, ensure_ascii=False) + "\r\n"

    train = file_of(tmp_path, "train.jsonl", jsonl({"prompt": prompt, "task_type": "object"}))
    assert read_prompts(train)["prompt"].to_pylist() == [prompt]
    row = {"tag": "counting", "prompt": prompt, "include": [{"class": "ring", "count": 1}]}
    metadata = file_of(tmp_path, "evaluation_metadata.jsonl", jsonl(row))
    assert [item.prompt for item in GenEval(GenEval.needs).read(metadata)] == [prompt]
    assert read_texts(metadata, "--prompts") == [prompt]
    rows = [{"Prompt": prompt, "Explanation": "e", "prompt_id": 3}]
    wise = file_of(tmp_path, "wise.json", MARK + json.dumps(rows, ensure_ascii=False, indent=1))
    assert [item.prompt for item in Wise({}).read(wise)] == [prompt]
    assert read_texts(wise, "--prompts") == [prompt]
    compbench = file_of(tmp_path, "color_val.txt", f"{MARK}a red\u2028cup\na blue cup\n")
    assert [item.prompt for item in CompBench({}).read(compbench)] == ["a red\u2028cup", "a blue cup"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'Prompts,Category\r\n"one, two",x\r\n"say ""hi""",y\r\n'),
        ("p.csv", f'{MARK}id;x,Caption\n1,"one, two"\n\n2,"say ""hi"""\n'),
        ("p.TSV", 'Category\tPrompt\nx\tone, two\ny\t"say ""hi"""\n'),
        ("p.jsonl", '{"text": "one, two"}\n\n{"text": "say \\"hi\\""}\n'),
        ("p.json", '[\n {"Prompt": "one, two"},\n {"caption": "say \\"hi\\"", "x": 1}\n]\n'),
    ],
)
def test_tables_and_layouts_give_their_prompts(name: str, content: str, tmp_path: Path) -> None:
    assert read_texts(file_of(tmp_path, name, content), "--prompts") == ["one, two", 'say "hi"']


def test_a_parquet_of_captions_gives_its_prompts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "caption": ["a", "b"]}), tmp_path / "p.parquet")
    assert read_texts(tmp_path / "p.parquet", "--prompts") == ["a", "b"]


REFUSED = {
    "a column twice": ("p.csv", "prompt,Prompt \na dog,a cat\n", "'prompt' occurs twice"),
    "a name twice": ("p.jsonl", '{"prompt": "a dog", "prompt": "a cat"}\n', "'prompt' occurs twice"),
    "a row that is cut off": ("p.tsv", "id\tprompt\n1\ta dog\n2\n", "p.tsv:3"),
    "no column of prompts": ("p.csv", "Name,Category\na dog,x\n", "Name, Category"),
    "a table without names": ("p.tsv", "a dog\tx\na cat\ty\n", "a dog"),
    "texts with commas, no quotes": ("p.csv", "Prompts,Category\na dog, a cat,x\n", "p.csv:2: 3 cells"),
    "a quote that does not end": ("p.csv", 'prompt\n"a dog\n', "separated values"),
    "an empty cell": ("p.csv", "prompt,x\n,y\n", "p.csv:2: prompt must be a text"),
    "an ending that is not known": ("p.md", "a dog\n", "ending '.md'"),
    "a compressed file": ("p.jsonl.gz", b"\x1f\x8b", "ending '.gz'"),
    "UTF-16": ("p.txt", "a dog\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
    "UTF-16 of a table": ("p.csv", "prompt\na dog\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
    "Latin-1": ("p.txt", b"a dog\na caf\xe9\n", "p.txt:2: not UTF-8"),
    "NUL": ("p.txt", "a\0dog\n", "p.txt:1: prompt holds NUL"),
}


@pytest.mark.parametrize(("name", "content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_one_line(name: str, content: str | bytes, words: str, tmp_path: Path) -> None:
    refused(lambda: read_texts(file_of(tmp_path, name, content), "--prompts"), "--prompts", words)
