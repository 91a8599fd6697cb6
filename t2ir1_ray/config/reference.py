"""`python -m t2ir1_ray.config.reference [--write FILE]`: every key of the configuration, from the dataclasses.

The comments beside the fields of sections.py are the meaning. `--write` puts the tables between FILE's two markers.
"""

import argparse
import dataclasses
import inspect
import io
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from t2ir1_ray.config.sections import Config
from t2ir1_ray.entry import run_entry
from t2ir1_ray.errors import UserError
from t2ir1_ray.storage import write_whole

BEGIN = "<!-- configuration reference: python -m t2ir1_ray.config.reference --write t2ir1_ray/config/README.md -->"
END = "<!-- end of configuration reference -->"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m t2ir1_ray.config.reference", description="Print every key.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace what stands between the markers of FILE")
    options = parser.parse_args(arguments)
    if options.write is None:
        print(reference())
        return
    try:
        text = options.write.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--write: {options.write}: {error.strerror}") from None
    write_whole(options.write, insert(text, options.write))


def reference() -> str:
    """Markdown: a table per section, in the order of the dataclasses."""
    return "\n\n".join(_section(name, section) for name, section in _sections().items())


def insert(text: str, file: Path) -> str:
    """`text` with the reference between its markers. Raises UserError if they are not there once and in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"--write: {file} must hold one line {BEGIN} and below it one line {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{reference()}\n{END}{rest.split(END)[1]}"


def meanings(section: type) -> dict[str, str]:
    """Field -> the comment that stands beside it in the source; comments that stand alone belong to no field."""
    source = inspect.getsource(section)
    fields = {field.name for field in dataclasses.fields(section)}
    found: dict[str, list[str]] = {}
    current, depth = None, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        elif token.type == tokenize.NAME and token.start[1] == 4 and token.string in fields and not depth:
            current = token.string
        elif token.type == tokenize.COMMENT and current and token.line.strip() != token.string:
            found.setdefault(current, []).append(token.string.lstrip("# "))
    return {name: " ".join(parts) for name, parts in found.items()}


def _sections() -> dict[str, type]:
    """Key prefix -> its dataclass; experts have a name of the user's choice."""
    sections = {}
    for name, kind in get_type_hints(Config).items():
        is_map = get_origin(kind) is dict
        sections[f"{name}.<name>" if is_map else name] = get_args(kind)[1] if is_map else kind
    return sections


def _section(prefix: str, section: type) -> str:
    hints, says = get_type_hints(section), meanings(section)
    lines = [f"**`{prefix}`**", "", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(section):
        cells = (f"`{field.name}`", f"`{_type(hints[field.name])}`", _default(field), says.get(field.name, ""))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _default(field: dataclasses.Field) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is MISSING or value == MISSING:
        return "required"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value!r}`".replace("'", '"')


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
