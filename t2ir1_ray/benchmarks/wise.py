"""WISE (arXiv 2503.07265): does the image show what the prompt implies? A vision language model is the judge.

Two editions were published, with other prompts, borders between the six domains, marks and judges: their numbers do not
belong side by side. `Wise.read` finds out from the files which one they are; the result names it.

| | legacy (the paper's, T2I-R1's) | verified (2026-04) |
| --- | --- | --- |
| marks | consistency, realism, aesthetic quality: 0, 1, 2 each; (0.7 C + 0.2 R + 0.1 A) / 2 | one score, 0 or 1 |
| published judge | gpt-4o-2024-05-13, 2,000 tokens | Qwen3.5-35B-A3B on vLLM, 500 tokens, thinking off |

The judge is whatever OpenAI-compatible endpoint the user names; judges differ by several points, so name yours beside
the number. The instructions are worded anew after the published criteria; `--judge-template` puts in another.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2ir1_ray.benchmarks.base import Benchmark, Call, Figure, Item, View, need_path, one_per_category
from t2ir1_ray.config import ExpertConfig
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.textfile import read_rows

DOMAINS = ("culture", "time", "space", "biology", "physics", "chemistry")
CATEGORIES = {"cultural knowledge": "culture", "physical knowledge": "physics", "ecology": "biology"}
CATEGORIES |= {domain: domain for domain in DOMAINS}
"""What the files call the domains, in lower case."""
PROMPTS = 1000
FIELDS = ("Prompt", "Explanation", "prompt_id")
REWRITE = "_rewrite"
"""Ends the names of files, beside the legacy ones, with prompts that say what the original ones imply."""


@dataclass(frozen=True)
class Edition:
    """What one edition's numbers are made of."""

    name: str
    borders: tuple[int, ...]  # the last prompt_id of each domain
    shares: tuple[float, ...]  # of the domains in the overall score
    marks: Mapping[str, float]  # what the judge gives -> weight
    highest: int  # of every mark
    template: str
    judge_options: Mapping[str, Any] = field(default_factory=dict)

    def domain(self, prompt_id: int) -> str:
        return next(name for name, last in zip(DOMAINS, self.borders, strict=True) if prompt_id <= last)

    def agrees(self, row: Mapping[str, Any]) -> bool:
        """Whether a row's own Category is where this edition has its number; one that is not known may be anywhere."""
        category = CATEGORIES.get(str(row.get("Category")).strip().lower())
        return category in (None, self.domain(row["prompt_id"]))


SYSTEM = "You are a strict and careful auditor of images made by text-to-image models."
LEGACY = Edition(
    name="legacy",
    borders=(400, 567, 700, 800, 900, 1000),
    shares=(0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    marks={"consistency": 0.7, "realism": 0.2, "aesthetic": 0.1},
    highest=2,
    template="""Judge the attached image by the three criteria below. Give each an integer score of 0, 1 or 2.

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
EXPLANATION: {explanation}""",
)
VERIFIED = Edition(
    name="verified",
    borders=(400, 520, 640, 760, 880, 1000),
    shares=(0.4, 0.12, 0.12, 0.12, 0.12, 0.12),
    marks={"score": 1.0},
    highest=1,
    template="""Decide whether the attached image is right. The prompt often only hints at what must be seen; the
explanation says what it is, and is the truth to judge by. Beauty does not count. Check four things:

1. The objects and the scene that the prompt asks for are there.
2. The answer that has to be known, as the explanation tells it, is what the image shows.
3. Relations are right: places, times, states, physical effects, behaviour.
4. The image can be used to judge: nothing important is broken, deformed or unreadable.

Score 1: all four hold. Score 0: one of them fails, or you are in doubt. Answer with exactly this line and nothing else:
Score: <0 or 1>

PROMPT: {prompt}
EXPLANATION: {explanation}""",
    judge_options={"max_tokens": 500, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
)


class Wise(Benchmark):
    name = "wise"
    images_per_prompt = 1

    def __init__(self, experts: Mapping[str, ExpertConfig]):
        super().__init__(experts)
        self._set(LEGACY, "")

    def read(self, path: Path | None) -> list[Item]:
        path = need_path(path, "a folder of WISE's .json files, or one of them")
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if path.is_dir():
            files = [file for file in files if not file.stem.endswith(REWRITE)]
        found = [(file, place, row) for file in files for place, row in _rows(file)]
        edition, how = edition_of(found)
        self._set(edition, f"{how}, rewritten prompts" if path.stem.endswith(REWRITE) else how)
        items: dict[int, Item] = {}
        first_file: dict[int, Path] = {}
        for file, place, row in found:
            number = row["prompt_id"]
            if number in items and (first_file[number] == file or items[number].fields != row):
                raise UserError(f"{place}: prompt_id {number} occurs twice: ids must be unique")
            first_file[number] = file  # published folders hold a file that repeats the rows of the others
            items[number] = Item(str(number), row["Prompt"], self.edition.domain(number), number, row)
        if not items:
            raise UserError(f"--prompts: {path} holds no WISE prompts: give its .json files")
        return [items[number] for number in sorted(items)]

    def judges(self, items: Sequence[Item]) -> set[str]:
        return {"judge"}

    def notes(self) -> dict[str, str]:
        return {"WISE edition": self.edition.name + self._how}

    def observe(self, item: Item, rollouts: Any, call: Call) -> dict[str, Any]:
        text = self.template.replace("{prompt}", item.prompt).replace("{explanation}", item.fields["Explanation"])
        return {"verdict": call("judge", "ask", rollouts, SYSTEM, text, self.readable)}

    def readable(self, answer: str) -> bool:
        return parse_verdict(answer, self.edition) is not None

    def score(self, item: Item, view: View) -> dict[str, float | None]:
        marks = parse_verdict(view.evidence["verdict"], self.edition)
        if marks is None:
            return dict.fromkeys(("wiscore", *self.edition.marks))
        return {"wiscore": wiscore(marks, self.edition), **marks}

    def figures(self, items: Sequence[Item]) -> list[Figure]:
        shares = dict(zip(DOMAINS, self.edition.shares, strict=True))
        return [Figure("overall", "wiscore", shares), *one_per_category(items, "wiscore")]

    def image_path(self, item: Item, number: int, count: int) -> str:
        return f"{item.prompt_id}.png" if count == 1 else f"{item.prompt_id}_{number}.png"

    def _set(self, edition: Edition, how: str) -> None:
        self.edition, self._how = edition, how
        self.template, self.judge_options = edition.template, edition.judge_options


def edition_of(found: Sequence[tuple[Path, str, Mapping[str, Any]]]) -> tuple[Edition, str]:
    """(edition of these rows, a remark on how sure that is). found: (file, where, row).

    Each row's Category has its place in an edition. Where that is the same in both, published names tell: those of the
    verified edition's files, or their folder, say so. Raises UserError if rows of both are mixed, or of none.
    """
    named = {"verified" in f"{file.absolute().parent.name}/{file.name}".lower() for file, _, _ in found}
    fitting = [edition for edition in (LEGACY, VERIFIED) if all(edition.agrees(row) for _, _, row in found)]
    for _, place, row in found:
        if not LEGACY.agrees(row) and not VERIFIED.agrees(row):
            what = f"Category {row['Category']!r:.80} is not that of prompt_id {row['prompt_id']}"
            raise UserError(f"{place}: {what} in any edition of WISE: restore the published file")
    if not fitting or (len(fitting) == 2 and len(named) == 2):
        raise UserError(f"--prompts: {found[0][0].parent} mixes the two editions of WISE: give the files of one")
    if len(fitting) == 1:
        return fitting[0], ""
    if True in named:
        return VERIFIED, " (by its file's name)"
    return LEGACY, " (assumed: nothing in the files tells)"


def wiscore(marks: Mapping[str, float], edition: Edition = LEGACY) -> float:
    """Weighted marks of one image, 0..1."""
    return sum(weight * marks[name] for name, weight in edition.marks.items()) / edition.highest


def parse_verdict(answer: str, edition: Edition = LEGACY) -> dict[str, float] | None:
    """The marks that were given last: models think aloud before. None if one is missing or out of range."""
    final = answer.rpartition("</think>")[2].replace("*", "")
    if "<think>" in final:  # cut off before the verdict
        return None
    marks = {}
    for name in edition.marks:
        given = re.findall(rf"\b{name}(?: quality)?\s*[:：]\s*(\d+(?:\.\d+)?)", final, re.IGNORECASE)
        if not given or not given[-1].isdecimal() or int(given[-1]) > edition.highest:
            return None
        marks[name] = float(given[-1])
    return marks


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = list(read_rows(file, "--prompts", (".json",)))
    for place, row in rows:
        ok = isinstance(row, dict) and all(name in row for name in FIELDS) and isinstance(row["Prompt"], str)
        ok = ok and isinstance(row["Explanation"], str) and bool(row["Prompt"].strip())
        if not ok or type(row["prompt_id"]) is not int or not 1 <= row["prompt_id"] <= PROMPTS:
            raise UserError(f"{place} lacks a Prompt, an Explanation or a prompt_id 1..{PROMPTS}")
    return rows
