"""Files of prompts that a person names: one rule for what a character, a line and a row is, whatever the command.

Text is UTF-8, with or without a byte-order mark. Lines end with \\n, \\r\\n or \\r and nothing else: what else
`str.splitlines` ends them at (U+2028, U+0085, \\x0b, \\x1c, ...) are characters of a prompt.
"""

import csv
import io
import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from t2ir1_ray.errors import UserError

MAX_BYTES = 512 << 20
"""The largest published prompt files have a few megabytes."""
MAX_LINE_BYTES = 1 << 20


def check_file(path: Path, option: str) -> None:
    """Raises UserError that names `option` if there is no ordinary file (a device has no end) or it is too long."""
    shown = str(path)[:200] if str(path).isprintable() else f"{str(path)!r:.200}"
    try:
        if not str(path).isprintable():
            raise UserError(f"{option}: {shown} holds control characters: give a path without")
        if not path.exists():
            raise UserError(f"{option}: {shown} does not exist: give a file of prompts")
        if not path.is_file():
            raise UserError(f"{option}: {shown} is no file")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{option}: {shown} is longer than {MAX_BYTES >> 20} MiB: not a file of prompts")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"{option}: {shown} cannot be read ({error.strerror})") from None


def read_text(path: Path, option: str) -> str:
    """The whole file, without its byte-order mark. Raises UserError if it is no ordinary file or not UTF-8."""
    return _decode(_read_bytes(path, option), f"{option}: {path} is not UTF-8 text")


def read_lines(path: Path, option: str) -> list[tuple[int, str]]:
    """(number from 1, text without blanks and byte-order marks around it) of every line that is not blank."""
    lines = []
    for number, raw in _raw_lines(path, option):
        text = _decode(raw, f"{option}: {path}:{number}: not UTF-8 text")
        if text.strip():
            lines.append((number, text.strip(" \t")))
    return lines


def read_rows(path: Path, option: str, endings: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(where it stands, to begin an error line with; its fields) of every row of a file with one of these `endings`.

    `.jsonl`: an object on each line. `.json`: the same, or one list of objects. `.csv`, `.tsv`: names of the columns
    in the first row. `.parquet`. Fields are as the file has them: JSON lines may hold anything.
    """
    check_file(path, option)
    ending = path.suffix.lower()
    if ending not in endings:
        raise UserError(f"{option}: {path} has the ending {path.suffix!r}: use {', '.join(endings)}")
    return _READERS[ending](path, option)


def _read_bytes(path: Path, option: str) -> bytes:
    check_file(path, option)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read ({error.strerror})") from None


def _decode(data: bytes, reproach: str) -> str:
    """Text without byte-order marks in front: files that were put together have one at each seam, too."""
    try:
        return data.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        is_utf16 = data.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        raise UserError(f"{reproach} ({'it is UTF-16: save it as UTF-8' if is_utf16 else error})") from None


def _raw_lines(path: Path, option: str) -> Iterator[tuple[int, bytes]]:
    for number, raw in enumerate(_read_bytes(path, option).splitlines(), 1):  # of bytes: at \n, \r\n and \r only
        if len(raw) > MAX_LINE_BYTES:
            raise UserError(f"{option}: {path}:{number}: longer than {MAX_LINE_BYTES} bytes: not a prompt line")
        yield number, raw


def _jsonl_rows(path: Path, option: str) -> Iterator[tuple[str, Any]]:
    for number, raw in _raw_lines(path, option):
        if raw.strip():
            yield f"{option}: {path}:{number}", _parse(raw, f"{option}: {path}:{number}: not a JSON object in UTF-8")


def _json_rows(path: Path, option: str) -> Iterator[tuple[str, Any]]:
    data = _read_bytes(path, option)
    if not data.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
        yield from _jsonl_rows(path, option)
        return
    for number, row in enumerate(_parse(data, f"{option}: {path}: not a JSON list in UTF-8"), 1):
        yield f"{option}: {path}: entry {number}", row


def _parse(data: bytes, reproach: str) -> Any:
    text = _decode(data, reproach)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{reproach} ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError if a name occurs twice, where json would take the last value without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the name {_twice([name for name, _ in pairs])!r:.80} occurs twice in an object")
    return found


def _twice(names: Sequence[str]) -> str | None:
    """The first name that occurs again."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _table_rows(path: Path, option: str, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.reader(io.StringIO(read_text(path, option), newline=""), delimiter=delimiter, strict=True)
    try:
        columns = next(reader, [])
        if (name := _twice([column.strip().lower() for column in columns if column.strip()])) is not None:
            raise UserError(f"{option}: {path}:1: the column {name!r:.80} occurs twice: rename or remove one")
        for cells in reader:
            place = f"{option}: {path}:{reader.line_num}"
            if len(cells) > len(columns):
                counts = f"{len(cells)} cells under {len(columns)} columns"
                raise UserError(f'{place}: {counts}: put a text that holds the separator in "quotes"')
            if any(cell.strip() for cell in cells):
                yield place, dict(zip_longest(columns, cells, fillvalue=""))
    except csv.Error as error:
        raise UserError(f"{option}: {path}:{reader.line_num}: not a table of separated values ({error})") from None


def _csv_rows(path: Path, option: str) -> Iterator[tuple[str, dict[str, str]]]:
    return _table_rows(path, option, ",")


def _tsv_rows(path: Path, option: str) -> Iterator[tuple[str, dict[str, str]]]:
    return _table_rows(path, option, "\t")


def _parquet_rows(path: Path, option: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = pq.read_table(path).to_pylist()
    except Exception as error:  # Arrow's own, and Python's for values that are no Unicode, dates, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{option}: {path}: not a Parquet file ({reason[:200]})") from None
    for number, row in enumerate(rows, 1):
        yield f"{option}: {path}:{number}", row


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
}
