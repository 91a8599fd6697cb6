"""What a finished evaluation has left in its folder."""

import json
from pathlib import Path
from typing import Any


def lines(out: Path) -> list[str]:
    return (out / "results.jsonl").read_text().splitlines()


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())
