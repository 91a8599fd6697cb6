"""The fuzzer: the same inputs every time, no crash among the first ones, and no crash that it would not see."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from t2ir1_ray.errors import UserError
from tests import fuzz


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *[("prompts", 300), ("config", 25), ("checkpoint", 20), ("benchmark", 150), ("run", 60)],
        *[
            ("texts", 200),
            ("names", 200),
            ("images", 200),
            ("questions", 200),
            ("writer", 150),
            ("resume", 15),
            ("metrics", 300),
        ],
    ],
)
def test_the_fuzzer_is_deterministic_and_finds_nothing(name: str, count: int, tmp_path: Path) -> None:
    target = fuzz.TARGETS[name](tmp_path)
    assert target.make(fuzz._random(name, 0, 7)) == target.make(fuzz._random(name, 0, 7))
    totals, crashes = fuzz.fuzz(name, target, range(count), seed=0, keep=tmp_path / "keep")
    assert not crashes
    assert totals.inputs == count


def test_the_fuzzer_sees_crashes_hangs_and_dead_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fragile:
        def make(self, rng: Any) -> fuzz.Case:
            return {"number": b"%d" % rng.randrange(10**6)}

        def run(self, folder: Path) -> None:
            accidents = {0: lambda: os._exit(3), 1: lambda: [][1], 2: lambda: fuzz.time.sleep(60)}
            number = int((folder / "number").read_bytes()) % 5
            accidents.get(number, lambda: None)()
            if number == 4:
                raise UserError("two\nlines")

    monkeypatch.setattr(fuzz, "TIME_LIMIT_S", 0.05)
    totals, crashes = fuzz.fuzz("fragile", Fragile(), range(20), seed=0, keep=tmp_path)
    assert {what.split(" ")[0] for what in crashes} == {"process", "IndexError", "Hang", "UserError"}
    assert totals.accepted + sum(crashes.values()) == 20
    assert json.loads(next(tmp_path.glob("*/crash.json")).read_text())["seed"] == 0
