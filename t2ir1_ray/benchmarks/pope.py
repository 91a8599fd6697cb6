"""POPE (arXiv 2305.10355, github.com/AoiDragon/POPE): yes/no questions about images, and what answers are worth.

Published are `coco_pope_random.json`, `coco_pope_popular.json` and `coco_pope_adversarial.json`, JSON lines of
{"question_id", "image", "text", "label"}. The kinds ask about the same 500 images, six questions each; what is there is
asked for in the same words in all three. So questions are no independent draws, and standard errors are over images.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rewards.images import decode_image
from t2ir1_ray.benchmarks.base import Estimate, need_path
from t2ir1_ray.benchmarks.ratios import Ratio, difference, ratio, swap_p
from t2ir1_ray.benchmarks.results import DIFFERENCE, as_json
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.textfile import read_rows
from t2ir1_ray.shapes.questions import KINDS
from t2ir1_ray.shapes.world import Scene, render

ENDINGS = (".json", ".jsonl")
LABELS = {"yes": True, "no": False}
NEGATIVE = {"No", "not", "no"}
FIGURES = ("accuracy", "precision", "recall", "F1", "yes ratio")
FILES = "POPE's coco_pope_*.json, one of them or their folder"


@dataclass(frozen=True)
class Asked:
    """One question about one image."""

    prompt_id: str
    category: str
    image: str  # its name
    text: str
    answer: bool  # the truth, True: yes
    source: Path | Scene
    place: str = ""  # where it was read, to begin an error line with

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8. Raises ValueError if the file cannot be read as one picture."""
        return decode_image(self.source.read_bytes()) if isinstance(self.source, Path) else render(self.source)


def read_questions(path: Path | None, images: Path) -> list[Asked]:
    """Questions of one file or of a folder's files, of which the kinds take turns: the first N are of all kinds.

    images: folder in which the images lie. Raises UserError that names the bad line; images are not looked at.
    """
    files = _files(need_path(path, FILES))
    turns = zip_longest(*(_read_file(file, kind, images) for kind, file in files.items()))
    found = [asked for turn in turns for asked in turn if asked is not None]
    if not found:
        raise UserError(f"--prompts: {path} holds no questions: give {FILES}")
    return found


def check_images(questions: Sequence[Asked]) -> str:
    """SHA-256 over what the images show. Raises UserError that names the first line whose image cannot be read."""
    state = hashlib.sha256()
    seen: set[str] = set()
    for asked in questions:
        if asked.image in seen:
            continue
        seen.add(asked.image)
        where = f"{asked.place}: image={asked.image!r:.80}"
        try:
            if isinstance(asked.source, Path) and not asked.source.is_file():
                raise UserError(f"{where}: no such file in the folder --images: give another one")
            pixels = asked.pixels()
        except OSError as error:
            raise UserError(f"{where}: {error.strerror}: mend the file, or give another folder by --images") from None
        except ValueError as error:
            raise UserError(f"{where}: {error}: download it again") from None
        state.update(f"{asked.image} {pixels.shape} ".encode() + pixels.tobytes())
    return state.hexdigest()


def says_yes(answer: str) -> bool:
    """POPE's rule (its evaluate.py): no if the first sentence has the word No, no or not, without commas; else yes."""
    return not NEGATIVE & set(answer.split(".")[0].replace(",", "").split(" "))


def is_readable(answer: str) -> bool:
    """Whether it says no by that rule, or has the word yes. The rule takes the others for yes, whatever they say."""
    return not says_yes(answer) or re.search(r"\byes\b", answer, re.IGNORECASE) is not None


def summarise(questions: Sequence[Asked], answers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """{"figures": {name: {column: {mean, stderr, prompts} or None}}, "unreadable": {column: answers}}.

    answers: column -> what was said to every question. Figures are of all questions together and then, named by it, of
    each category: accuracy, precision, recall, F1 and the share of yes, of which yes is the positive class. With two
    columns, "difference" is the first minus the second, and has the `p` of `swap_p`.
    """
    groups: dict[str, list[int]] = {"": list(range(len(questions)))}
    for row, asked in enumerate(questions):
        groups.setdefault(f"{asked.category}: ", []).append(row)
    if len(groups) == 2:
        groups = {"": groups[""]}
    said = {column: np.array([says_yes(answer) for answer in found]) for column, found in answers.items()}
    figures: dict[str, dict[str, Any]] = {}
    for group, rows in groups.items():
        truth = np.array([questions[row].answer for row in rows])
        _, units = np.unique([questions[row].image for row in rows], return_inverse=True)
        counted = {column: counts(yes[rows], truth) for column, yes in said.items()}
        for name in FIGURES:
            ratios = {column: Ratio.over(units, *found[name]) for column, found in counted.items()}
            cells = {column: _cell(ratio(one), len(rows)) for column, one in ratios.items()}
            if len(ratios) == 2:
                cells[DIFFERENCE] = _cell(difference(*ratios.values()), len(rows))
                if cells[DIFFERENCE]:
                    cells[DIFFERENCE]["p"] = swap_p(*ratios.values())
            figures[group + name] = cells
    unreadable = {column: sum(not is_readable(answer) for answer in found) for column, found in answers.items()}
    return {"figures": figures, "unreadable": unreadable}


def counts(yes: np.ndarray, truth: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name of FIGURES, what it counts in each question (N,), and out of what. yes, truth: (N,) bool, said and true.

    Every figure is a sum over questions divided by another; F1 is 2 TP / (2 TP + FP + FN).
    """
    right, both, all_of = yes == truth, yes & truth, np.ones(len(truth))
    return {
        "accuracy": (right, all_of),
        "precision": (both, yes),
        "recall": (both, truth),
        "F1": (2 * both, yes.astype(int) + truth),
        "yes ratio": (yes, all_of),
    }


def _cell(found: tuple[float, float] | None, questions: int) -> dict[str, Any] | None:
    return as_json(None if found is None else Estimate(*found, questions))


def _files(path: Path) -> dict[str, Path]:
    """Kind -> file. The kind of a file that is named otherwise is its name."""
    if path.is_file():
        return {_kind(path) or path.stem: path}
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        kind = _kind(file)
        if kind in found:
            raise UserError(f"--prompts: {path} holds both {found[kind].name} and {file.name}: name one of them")
        if kind:
            found[kind] = file
    if not found:
        raise UserError(f"--prompts: {path} holds no file for {', '.join(KINDS)}: give {FILES}")
    return {kind: found[kind] for kind in KINDS if kind in found}


def _kind(file: Path) -> str | None:
    kind = file.stem.rpartition("_")[2]
    return kind if kind in KINDS and file.suffix in ENDINGS else None


def _read_file(file: Path, kind: str, images: Path) -> Iterator[Asked]:
    seen: set[str] = set()
    for place, row in read_rows(file, "--prompts", ENDINGS):
        if not isinstance(row, Mapping):
            raise UserError(f"{place}: must be a JSON object, is {type(row).__name__}")
        number, label = row.get("question_id"), row.get("label")
        if type(number) not in (int, str) or str(number) in seen:
            raise UserError(f"{place}: question_id={number!r:.80}: must be a number or a text that occurs once")
        seen.add(str(number))
        text, image = (_text(row, field, place) for field in ("text", "image"))
        if not isinstance(label, str) or label not in LABELS:
            raise UserError(f"{place}: label={label!r:.80}: must be yes or no")
        name = PurePosixPath(image)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"{place}: image={image!r:.80}: must be a file inside of the folder --images")
        yield Asked(f"{kind}/{number}", kind, image, text, LABELS[label], images / name, place)


def _text(row: Mapping[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip() or re.search("[\0\ud800-\udfff]", value):
        raise UserError(f"{place}: {field}={value!r:.80}: must be a text, without NUL and lone surrogates")
    return value
