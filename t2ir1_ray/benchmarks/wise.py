"""WISE (arXiv 2503.07265): does the image show what the prompt implies? A vision language model is the judge.

WiScore of an image = (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2, each 0, 1 or 2; overall = weighted
mean of the six domains, which are ranges of prompt_id among the paper's 1,000 prompts (the "verified" set of 2026 has
other prompts, ranges and marks: not for this file). The judge is whatever OpenAI-compatible endpoint the user names.
The published judge is gpt-4o-2024-05-13; other judges differ by several points, so name yours beside the number. The
instruction below is worded anew after the published criteria; `--judge-template` puts another one in its place.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2ir1_ray.benchmarks.base import Benchmark, Call, Figure, Item, View, need_path, one_per_category
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.textfile import read_text

DOMAINS = {"culture": 400, "time": 567, "space": 700, "biology": 800, "physics": 900, "chemistry": 1000}
"""Domain -> its last prompt_id."""
SHARES = {"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
METRICS = {"consistency": 0.7, "realism": 0.2, "aesthetic": 0.1}
FIELDS = ("Prompt", "Explanation", "prompt_id")

SYSTEM = "You are a strict and careful auditor of images made by text-to-image models."
TEMPLATE = """Judge the attached image by the three criteria below. Give each an integer score of 0, 1 or 2.

Consistency: does the image show what the prompt means, as the explanation tells it?
0: it misses or contradicts it. 1: it shows a part of it. 2: it shows all of it, exactly.
Realism: does the image look as things do in the world (physics, materials, anatomy, proportions)?
0: it is broken or implausible. 1: it has clear flaws. 2: it has none worth naming.
Aesthetic Quality: is the image well composed, lit and coloured?
0: it is unpleasant. 1: it is ordinary. 2: it is striking.

Be strict: where you are in doubt, give the lower score. Answer with exactly these three lines and nothing else:
Consistency: <score>
Realism: <score>
Aesthetic Quality: <score>

PROMPT: {prompt}
EXPLANATION: {explanation}"""


class Wise(Benchmark):
    name = "wise"
    images_per_prompt = 1
    template = TEMPLATE

    def read(self, path: Path | None) -> list[Item]:
        path = need_path(path, "a folder of WISE's .json files, or one of them")
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        items: dict[int, Item] = {}
        for file in files:
            for row in _rows(file):
                number = row["prompt_id"]
                if number in items:
                    raise UserError(f"--prompts: {file}: prompt_id {number} occurs twice: ids must be unique")
                domain = next(name for name, last in DOMAINS.items() if number <= last)
                items[number] = Item(str(number), row["Prompt"], domain, number, row)
        if not items:
            raise UserError(f"--prompts: {path} holds no WISE prompts: give its .json files")
        return [items[number] for number in sorted(items)]

    def judges(self, items: Sequence[Item]) -> set[str]:
        return {"judge"}

    def observe(self, item: Item, rollouts: Any, call: Call) -> dict[str, Any]:
        text = self.template.replace("{prompt}", item.prompt).replace("{explanation}", item.fields["Explanation"])
        return {"verdict": call("judge", "ask", rollouts, SYSTEM, text, readable)}

    def score(self, item: Item, view: View) -> dict[str, float | None]:
        marks = parse_verdict(view.evidence["verdict"])
        if marks is None:
            return dict.fromkeys(("wiscore", *METRICS))
        return {"wiscore": wiscore(**marks), **marks}

    def figures(self, items: Sequence[Item]) -> list[Figure]:
        return [Figure("overall", "wiscore", SHARES), *one_per_category(items, "wiscore")]

    def image_path(self, item: Item, number: int, count: int) -> str:
        return f"{item.prompt_id}.png" if count == 1 else f"{item.prompt_id}_{number}.png"


def wiscore(consistency: float, realism: float, aesthetic: float) -> float:
    """Weighted marks of one image, 0..1."""
    marks = {"consistency": consistency, "realism": realism, "aesthetic": aesthetic}
    return sum(weight * marks[name] for name, weight in METRICS.items()) / 2


def parse_verdict(text: str) -> dict[str, float] | None:
    """The three marks; None if one is missing or is not 0, 1 or 2."""
    marks = {}
    for name in METRICS:
        found = re.search(rf"\b{name}(?: quality)?\s*:\s*(\d+)(?!\d|\.\d)", text.replace("*", ""), re.IGNORECASE)
        if found is None or int(found[1]) > 2:
            return None
        marks[name] = float(found[1])
    return marks


def readable(text: str) -> bool:
    return parse_verdict(text) is not None


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(read_text(file, "--prompts"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"--prompts: {file}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise UserError(f"--prompts: {file} must hold a list of prompts")
    for number, row in enumerate(rows, 1):
        ok = isinstance(row, dict) and all(name in row for name in FIELDS) and isinstance(row["Prompt"], str)
        ok = ok and isinstance(row["Explanation"], str) and bool(row["Prompt"].strip())
        if not ok or type(row["prompt_id"]) is not int or not 1 <= row["prompt_id"] <= max(DOMAINS.values()):
            raise UserError(f"--prompts: {file}: entry {number} lacks a Prompt, an Explanation or a prompt_id 1..1000")
    return rows
