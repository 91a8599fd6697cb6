"""What an evaluation leaves behind: settings.json, results.jsonl (a line per finished prompt), summary.json, row.md."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from t2ir1_ray.benchmarks.base import Benchmark, Estimate, Figure, Item, estimate, sign_flip_p
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.filenames import file_name
from t2ir1_ray.storage import AppendedLines, write_whole

MAY_CHANGE = ("modes", "seeds", "prompts_path", "checkpoint", "judge_url")
"""Settings in which a resumed evaluation may differ: modes and seeds are more to do, paths are known by digests."""

DIFFERENCE = "difference"


class Words(NamedTuple):
    """What a table's numbers are of."""

    counted: str = "prompts"
    error: str = "standard error over prompts (images and seeds of a prompt averaged first)"
    test: str = "paired by prompt, two-sided, by flipping signs"
    unreadable: str = "verdicts that could not be read"


PROMPTS = Words()


def label(checkpoint: str) -> str:
    """A short name; a run's checkpoint has the run's name in front: every run has a step_000120."""
    path = Path(checkpoint)
    return f"{path.parent.parent.name}-{path.name}" if path.parent.name == "checkpoints" else path.name


def both_labels(checkpoint: str, base: str) -> tuple[str, str]:
    """Names of a checkpoint and of the one that it is compared with, which may be called the same."""
    this, other = label(checkpoint), label(base)
    return this, other if other != this else f"{other} (base)"


def default_folder(benchmark: str, checkpoint: str) -> Path:
    """Where an evaluation lies if nothing else is said."""
    return Path("evaluations") / file_name(f"{benchmark}-{label(checkpoint)}")


class Results:
    """Append-only: a line is on the disk before the next prompt is begun, and a line that was cut off is dropped."""

    def __init__(self, out: Path, settings: Mapping[str, Any]):
        """Raises UserError if the folder holds an evaluation with other settings, or cannot be written."""
        self.out = out
        path = out / "results.jsonl"
        try:
            out.mkdir(parents=True, exist_ok=True)
            _agree(out / "settings.json", settings)
            whole = path.read_bytes() if path.exists() else b""
            whole = whole[: whole.rfind(b"\n") + 1]
            if path.exists():
                os.truncate(path, len(whole))
        except OSError as error:
            raise UserError(
                f"--out: {str(out)[:200]} cannot be written ({error.strerror}): choose another folder"
            ) from None
        self.records = _records(whole, path, "--out")
        self._file = AppendedLines(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Raises RunError if the disk fails."""
        self._file.append(json.dumps(record, ensure_ascii=False))
        self.records[key_of(record)] = dict(record)

    def close(self) -> None:
        self._file.close()


def read_base(
    folder: Path, settings: Mapping[str, Any], wanted: Sequence[tuple[str, int, str]]
) -> tuple[str, list[dict[str, Any]]]:
    """(checkpoint, its records of `wanted`) of a finished evaluation, to compare another checkpoint with.

    Raises UserError if it was made with other settings, lacks one of the wanted (mode, seed, prompt_id), or is none.
    """
    try:
        whole = (folder / "results.jsonl").read_bytes()
    except OSError as error:
        raise UserError(f"--against: {str(folder)[:200]} is no evaluation ({error.strerror})") from None
    before = _read_settings(folder / "settings.json", "--against")
    _compare(before, settings, (*MAY_CHANGE, "checkpoint_digest"), f"--against: {folder}")
    records = _records(whole, folder / "results.jsonl", "--against")
    missing = [key for key in wanted if key not in records]
    if missing:
        mode, seed, _ = missing[0]
        raise UserError(f"--against: {folder} lacks {len(missing)} prompts ({mode}, seed {seed}): finish it first")
    return str(before["checkpoint"]), [records[key] for key in wanted]


def against(
    benchmark: Benchmark,
    items: Sequence[Item],
    records: Sequence[Mapping[str, Any]],
    base: Sequence[Mapping[str, Any]],
    modes: Sequence[str],
    names: tuple[str, str],
) -> dict[str, Any]:
    """mode -> summary whose columns are the two checkpoints and their difference, paired by prompt."""

    def of(rows: Sequence[Mapping[str, Any]], mode: str, name: str) -> list[dict[str, Any]]:
        return [{**row, "mode": name} for row in rows if row["mode"] == mode]

    return {
        mode: summarise(benchmark, items, of(records, mode, names[0]) + of(base, mode, names[1]), names)
        for mode in modes
    }


def beside(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One summary whose columns are every checkpoint with every mode; summaries: by checkpoint, of the same figures."""
    figures: dict[str, dict[str, Any]] = {}
    for checkpoint, summary in summaries.items():
        for name, row in summary["figures"].items():
            columns = {f"{checkpoint}: {mode}": cell for mode, cell in row.items() if mode != DIFFERENCE}
            figures.setdefault(name, {}).update(columns)
    unreadable = {f"{c}: {mode}": n for c, summary in summaries.items() for mode, n in summary["unreadable"].items()}
    return {"figures": figures, "unreadable": unreadable}


def key_of(record: Mapping[str, Any]) -> tuple[str, int, str]:
    return record["mode"], record["seed"], record["prompt_id"]


def summarise(
    benchmark: Benchmark,
    items: Sequence[Item],
    records: Sequence[Mapping[str, Any]],
    modes: Sequence[str],
) -> dict[str, Any]:
    """{"figures": {name: {mode: {mean, stderr, prompts} or None}}, "unreadable": {mode: images}}.

    With two modes, "difference" is the first minus the second, paired by prompt, and has the `p` of `sign_flip_p`. A
    figure over several categories is withheld (None) while one of its images has no readable verdict.
    """
    category_of = {item.prompt_id: item.category for item in items}
    figures: dict[str, dict[str, Any]] = {}
    unreadable = dict.fromkeys(modes, 0)
    for figure in benchmark.figures(items):
        values = {mode: _values(records, mode, figure.metric) for mode in modes}
        missing = {mode: sum(value is None for found in values[mode].values() for value in found) for mode in modes}
        unreadable = {mode: max(unreadable[mode], missing[mode]) for mode in modes}
        columns = {mode: _estimate(figure, category_of, values[mode], missing[mode]) for mode in modes}
        if len(modes) == 2:
            first, second = (
                {key: [v for v in found if v is not None] for key, found in values[mode].items()} for mode in modes
            )
            paired = {
                key: [float(np.mean(first[key]) - np.mean(second[key]))]
                for key in first
                if first[key] and second.get(key)
            }
            columns[DIFFERENCE] = _estimate(figure, category_of, paired, max(missing.values()))
        figures[figure.name] = {name: as_json(column) for name, column in columns.items()}
        if difference := figures[figure.name].get(DIFFERENCE):
            difference["p"] = sign_flip_p(figure, category_of, {key: value for key, (value,) in paired.items()})
    return {"figures": figures, "unreadable": unreadable}


def show(title: str, summary: Mapping[str, Any], console: Console, words: Words = PROMPTS) -> None:
    """The table for a person."""
    columns = list(next(iter(summary["figures"].values())))
    table = Table("", *columns, words.counted, title=title, title_justify="left")
    for name, row in summary["figures"].items():
        prompts = max((cell["prompts"] for cell in row.values() if cell), default=0)
        table.add_row(name, *[_cell(row[column], signed=column == DIFFERENCE) for column in columns], str(prompts))
    notes = f"mean ± {words.error}, in %"
    if DIFFERENCE in columns:
        notes += f"; p: {words.test}"
    if any(summary["unreadable"].values()):
        notes += f"; {words.unreadable}: {sum(summary['unreadable'].values())}"
    table.caption, table.caption_justify = notes, "left"
    console.print(table)


def markdown(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A header and one row per checkpoint and mode, to paste into a table. summaries: by checkpoint."""
    names = list(next(iter(summaries.values()))["figures"])
    lines = [f"| checkpoint | mode | {' | '.join(names)} |", f"| --- | --- |{' --- |' * len(names)}"]
    for checkpoint, summary in summaries.items():
        rows = summary["figures"].values()
        modes = [mode for mode in next(iter(rows)) if mode != DIFFERENCE]
        lines += [f"| {checkpoint} | {mode} | {' | '.join(_cell(row[mode]) for row in rows)} |" for mode in modes]
    return "\n".join(lines) + "\n"


def write_summary(
    out: Path, summary: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Any]], words: Words = PROMPTS
) -> str:
    """summary.json and row.md in the evaluation's folder; returns the rows. summaries: by checkpoint, for the rows."""
    settings = json.loads((out / "settings.json").read_text())
    document = {**settings, "standard_error": words.error.removeprefix("standard error "), **summary}
    write_whole(out / "summary.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    row = markdown(summaries)
    write_whole(out / "row.md", row)
    return row


def _records(whole: bytes, path: Path, option: str) -> dict[tuple[str, int, str], dict[str, Any]]:
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            found[key_of(record)] = record
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{option}: {path}:{number}: not a result of this program: choose another folder") from None
    return found


def _read_settings(path: Path, option: str) -> dict[str, Any]:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{option}: {path} is not of this program: choose another folder")
    return before


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], may_change: Sequence[str], where: str) -> None:
    for name, value in json.loads(json.dumps(now)).items():
        if name not in may_change and before.get(name) != value:
            was = json.dumps(before.get(name))
            raise UserError(
                f"{where} holds an evaluation with {name}={was}, not {json.dumps(value)}: choose another folder"
            )


def _agree(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, or compare them with those that are there."""
    if path.exists():
        _compare(_read_settings(path, "--out"), settings, MAY_CHANGE, f"--out: {path.parent}")
    write_whole(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _values(records: Sequence[Mapping[str, Any]], mode: str, metric: str) -> dict[str, list[float | None]]:
    values: dict[str, list[float | None]] = {}
    for record in records:
        if record["mode"] == mode:
            found = [image["scores"][metric] for image in record["images"] if metric in image["scores"]]
            values.setdefault(record["prompt_id"], []).extend(found)
    return values


def _estimate(
    figure: Figure, category_of: Mapping[str, str], values: Mapping[str, Sequence[float | None]], missing: int
) -> Estimate | None:
    if missing and (figure.shares is None or len(figure.shares) > 1):
        return None
    readable = {key: [value for value in found if value is not None] for key, found in values.items()}
    return estimate(figure, category_of, readable)


def as_json(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return found._asdict() | {"stderr": found.stderr if math.isfinite(found.stderr) else None}


def _cell(found: Mapping[str, Any] | None, signed: bool = False) -> str:
    if found is None:
        return "-"
    mean = f"{100 * found['mean']:{'+' if signed else ''}.1f}"
    spread = "" if found["stderr"] is None else f" ± {100 * found['stderr']:.1f}"
    return mean + spread + (f", p {found['p']:.2g}" if "p" in found else "")
