"""What a run has written of its steps."""

import json
from pathlib import Path
from typing import Any

TIMED = ("time/", "throughput/", "usage/")
"""Beginnings of what no two runs have alike."""


def metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, none if it has not been begun: a run may be in the middle of one."""
    text = file.read_text() if (file := run / "metrics.jsonl").is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
