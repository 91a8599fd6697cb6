"""One HTML file from one or two runs: everything inside, nothing fetched, bounded in size."""

import base64
import gzip
import hashlib
import html
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from t2ir1_ray.errors import UserError
from t2ir1_ray.report_page.curves import charts
from t2ir1_ray.report_page.dumps import read_dump
from t2ir1_ray.report_page.health import health
from t2ir1_ray.report_page.runs import Run

SCRIPTS = ("dom.js", "health.js", "lanes.js", "curves.js", "groups.js", "follow.js", "main.js")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; connect-src data:"
INDEX = ("prompt", "task", "version", "mean", "low", "high", "state")  # of a group: what filters and sorting need


@dataclass(frozen=True)
class Page:
    html: str
    summary: str  # size and contents, one line
    notes: list[str]  # what was left out; also said on the page


def build_page(runs: Sequence[Run], max_mb: float) -> Page:
    """A page of at most `max_mb` megabytes (10^6 bytes) about one or two runs.

    When the dumps need more, evenly spread steps are kept, the same in both runs. Raises UserError on a broken dump, or
    if even the curves do not fit.
    """
    names = _distinct_names(runs)
    packed = _plotly()[1]
    shown = [run_data(name, run) for name, run in zip(names, runs, strict=True)]
    drawn = chart_data(key for run in runs for key in run.series)
    fixed = len(packed) + len(to_json([shown, drawn])) + sum(len(_resource(name)) for name in (*SCRIPTS, "page.css"))
    fixed += 10_000  # page.html, notes, names
    budget = min(max_mb, 1e6) * 1e6 - fixed
    if not budget >= 0:  # also NaN
        raise UserError(f"--max-mb={max_mb:g}: the curves alone need {fixed / 1e6:.1f}: ask for more")

    dumps, notes = _fitting_dumps(runs, names, budget)
    index = [
        {"run": r, "step": step, "at": at, **{key: group[key] for key in INDEX}}
        for (r, step), groups in sorted(dumps.items())
        for at, group in enumerate(groups)
    ]
    data = {"runs": shown, "charts": drawn, "groups": index, "clock": time.time(), "follow": None}
    blocks = [
        f'<script type="application/json" id="dump-{r}-{step}">{_block(groups)}</script>'
        for (r, step), groups in sorted(dumps.items())
    ]
    size = fixed + len(to_json(index)) + sum(map(len, blocks))
    contents = [f"{size / 1e6:.1f} MB", f"{max(len(run.steps) for run in runs)} reported steps", f"{len(index)} groups"]
    text = _filled(" and ".join(names), ", ".join(contents), POLICY, notes, data, blocks)
    return Page(text, ", ".join(contents), notes)


def followed_page(name: str, where: str) -> str:
    """The page of a run that is followed: the same, empty, and told where to ask for what there is and what comes."""
    data = {"runs": [], "charts": [], "groups": [], "clock": time.time(), "follow": where}
    return _filled(name, "followed as it is written", f"{POLICY} 'self'", [], data, [])


def run_data(name: str, run: Run) -> dict[str, Any]:
    """What the scripts know of a run beside its samples."""
    steps = run.config.get("train.steps", "")
    total = int(steps) if steps.isdecimal() and len(steps) < 10 else None
    return {
        "name": name,
        "steps": run.steps,
        "series": run.series,
        "config": run.config,
        "tiles": run.history.tiles,
        "now": None,
        "health": health(run.history, run.name, run.steps[-1] if run.steps else None, total, run.beats),
    }


def chart_data(metrics: Iterable[str]) -> list[dict[str, Any]]:
    return [asdict(chart) for chart in charts(metrics)]


def _filled(
    title: str, summary: str, policy: str, notes: Sequence[str], data: dict[str, Any], blocks: Sequence[str]
) -> str:
    script = "\n".join(_resource(name) for name in SCRIPTS)
    plotly, packed = _plotly()
    return Template(_resource("page.html")).substitute(
        policy=f"{policy}; script-src {_sha(script)} {_sha(plotly)}",
        title=html.escape(title),
        summary=html.escape(summary),
        notes="".join(f"<p class=note>{html.escape(note)}</p>" for note in notes),
        style=_resource("page.css"),
        data=to_json(data),
        plotly=packed,
        blocks="\n".join(blocks),
        script=script,
        footer="Self-contained: nothing is fetched." if data["follow"] is None else "Nothing leaves this machine.",
    )


def spread_evenly(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, evenly spread, the last and (from two on) the first among them."""
    if count <= 1:
        return list(steps[-1:]) if count == 1 else []
    places = np.linspace(0, len(steps) - 1, min(count, len(steps)))
    return [steps[place] for place in places.round().astype(int)]


def _fitting_dumps(
    runs: Sequence[Run], names: Sequence[str], budget: float
) -> tuple[dict[tuple[int, int], list[dict[str, Any]]], list[str]]:
    """(run, step) -> groups of the steps that fit in `budget` bytes, and a note for each run that lost some."""
    steps = sorted({step for run in runs for step in run.dumps})
    read: dict[int, dict[tuple[int, int], list[dict[str, Any]]]] = {}
    sizes: dict[int, int] = {}

    def size(step: int) -> int:
        if step not in read:
            read[step] = {(r, step): read_dump(run.dumps[step]) for r, run in enumerate(runs) if step in run.dumps}
            sizes[step] = sum(len(to_json(groups)) + 40 * len(groups) + 80 for groups in read[step].values())
        return sizes[step]

    probe = spread_evenly(steps, 3)
    count = int(budget * len(probe) / max(1, sum(map(size, probe))))
    chosen = spread_evenly(steps, count)
    while (total := sum(map(size, chosen))) > budget:
        count = min(len(chosen) - 1, int(len(chosen) * budget / total))
        chosen = spread_evenly(steps, count)
    kept = {key: groups for step in chosen for key, groups in read[step].items()}

    notes = []
    for r, (name, run) in enumerate(zip(names, runs, strict=True)):
        there = [step for step in run.dumps if (r, step) in kept]
        if not run.dumps:
            notes.append(f"{name}: no samples were dumped (journal.dump_every=0), so there are curves only.")
        elif len(there) < len(run.dumps):
            which = ", ".join(map(str, there)) if len(there) <= 40 else f"{there[0]} to {there[-1]}, evenly spread"
            notes.append(
                f"{name}: samples of {len(there)} of {len(run.dumps)} dumped steps are shown ({which or 'none'}); the "
                f"others are left out to bound this page: a larger --max-mb shows more. The curves have every step."
            )
    return kept, notes


@cache
def _plotly() -> tuple[str, str]:
    """The library as source and as base64 of its gzip."""
    source = get_plotlyjs()
    return source, base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()


def _block(groups: list[dict[str, Any]]) -> str:
    return to_json([{key: value for key, value in group.items() if key not in INDEX} for group in groups])


def to_json(value: Any) -> str:
    """JSON that may stand in a <script> element: no `<` ends the element or opens a comment."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _sha(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (resources.files("t2ir1_ray.report_page") / name).read_text(encoding="utf-8")


def _distinct_names(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [f"{name} ({'AB'[i]})" for i, name in enumerate(names)]
