"""What a checkpoint understands: it is asked yes/no questions about images, greedily, as POPE does.

Drawing is all that reinforcement trains here, but the language model that it changes is also the one that reads images.
The same questions before and after, paired, tell what that costs. Without `--prompts` they are made for the shapes
world, about rendered scenes of held-out prompts; every question has an image of its own there.
"""

import hashlib
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from t2ir1_ray.benchmarks import UNDERSTANDING, pope
from t2ir1_ray.benchmarks.pope import Asked
from t2ir1_ray.benchmarks.results import (
    Results,
    Words,
    both_labels,
    label,
    read_base,
    show,
    write_summary,
)
from t2ir1_ray.checkpoints.folder import contents_digest, resolve_checkpoint
from t2ir1_ray.config import Config
from t2ir1_ray.errors import UserError
from t2ir1_ray.shapes.prompts import TASK_TYPES, sample_requirement, sample_scene
from t2ir1_ray.shapes.questions import KINDS, sample_question
from t2ir1_ray.shapes.world import write_plan
from t2ir1_ray.storage import OneWriter

COUNT = 600
"""Questions about shapes: 200 of each kind, half of them to be answered with yes."""
SEED = 2305
MODE = "greedy"
BATCH = 16
"""Questions that are asked together: of Janus-Pro-7B their keys and values take 5 GB."""
WORDS = Words(
    "questions",
    "standard error over images",
    "paired by image, two-sided, by exchanging answers",
    "answers without yes or no, which count as yes",
)


def read(path: Path | None, images: Path | None) -> list[Asked]:
    """The questions of POPE's files, or those about shapes if no path is given.

    Raises UserError that names the option or the bad line.
    """
    if path is None and images is None:
        return shape_questions()
    if images is None or path is None:
        missing, given = ("--images", "--prompts") if images is None else ("--prompts", "--images")
        raise UserError(f"{missing}: missing: {given} needs the folder of images and the questions about them")
    if not os.path.isdir(images):
        raise UserError(f"--images: {str(images)!r:.200} is no folder: give the one in which the images lie")
    return pope.read_questions(path, images)


def shape_questions(count: int = COUNT, seed: int = SEED) -> list[Asked]:
    """Questions about scenes of held-out prompts; any multiple of six has as many of each kind and of each answer."""
    rng = random.Random(seed)
    found = []
    for index in range(count):
        turn, place = divmod(index, len(KINDS))
        scene = sample_scene(sample_requirement(rng, rng.choice(TASK_TYPES), held_out=True), rng)
        asked = sample_question(rng, scene, KINDS[place], turn % 2 == 0)
        found.append(Asked(f"{asked.kind}/{turn}", asked.kind, write_plan(scene), asked.text, asked.answer, scene))
    return found


def evaluate(
    config: Config,
    questions: Sequence[Asked],
    path: Path | None,
    out: Path,
    base: Path | None,
    actors: int | None,
) -> dict[str, Any]:
    """Ask what has no answer yet, print the table, write the folder; returns the summary.

    path: of the questions, None: about shapes. base: folder of another checkpoint's finished evaluation, which this one
    is compared with. actors: as of `Answerers`.
    """
    check_policy(config, questions, f"--prompts: {path or UNDERSTANDING}")
    made_with = settings(config, questions, path)
    keys = [(MODE, 0, asked.prompt_id) for asked in questions]
    compared = read_base(base, made_with, keys) if base else None
    with OneWriter(out, "--out"):
        results = Results(out, made_with)
        try:
            _ask(config, questions, results, actors)
        finally:
            results.close()
        return _report(config.policy.path, questions, results, compared)


def check_policy(config: Config, questions: Sequence[Asked], source: str) -> None:
    """Raises UserError if the checkpoint does not say how it sees images, or if image, question and answer do not fit
    into the model's positions."""
    from t2ir1_ray.janus.answerer import MAX_NEW_TOKENS, count_image_tokens, load_image_processor
    from t2ir1_ray.janus.policy import PromptFormat, load_config, load_tokenizer

    janus = load_config(config.policy.path)
    load_image_processor(config.policy.path, janus)
    form = PromptFormat(load_tokenizer(config.policy.path), config.policy)
    positions = janus.text_config.max_position_embeddings
    texts = {asked.text: form.question_ids(asked.text, count_image_tokens(janus)) for asked in questions}
    longest = max(texts, key=lambda text: len(texts[text]))
    if len(texts[longest]) + MAX_NEW_TOKENS > positions:
        raise UserError(
            f"{source}: {longest!r:.80}: {len(texts[longest])} tokens with its image, and {MAX_NEW_TOKENS} for the "
            f"answer: the model has {positions} positions: shorten it"
        )
    unknown = [text for text, ids in texts.items() if form.tokenizer.unk_token_id in ids]
    if unknown:
        others = f" and {len(unknown) - 1} other questions" if len(unknown) > 1 else ""
        print(f"note: the checkpoint does not know every word of {unknown[0]!r:.80}{others}", file=sys.stderr)


def settings(config: Config, questions: Sequence[Asked], path: Path | None) -> dict[str, Any]:
    """What the numbers depend on. Raises UserError if an image cannot be read."""
    from t2ir1_ray.janus.answerer import MAX_NEW_TOKENS

    texts = "\n".join(json.dumps([a.prompt_id, a.category, a.image, a.text, a.answer]) for a in questions)
    return {
        "benchmark": UNDERSTANDING,
        "checkpoint": config.policy.path,
        "checkpoint_digest": contents_digest(resolve_checkpoint(config.policy.path, "policy.path")),
        "prompts_path": str(path) if path else None,
        "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
        "images_sha256": pope.check_images(questions),
        "num_prompts": len(questions),
        "modes": [MODE],
        "seeds": [0],
        "dtype": config.policy.dtype,
        "question_template": config.policy.question_template,
        "max_new_tokens": MAX_NEW_TOKENS,
    }


def _ask(config: Config, questions: Sequence[Asked], results: Results, actors: int | None) -> None:
    """On Ray, if anything is left to do. Batches are the same whatever is left, and so are their answers' bits."""
    batches = [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
    left = [batch for batch in batches if any((MODE, 0, asked.prompt_id) not in results.records for asked in batch)]
    if not left:
        return
    from actors.connect import connect
    from t2ir1_ray.benchmarks.asking import Answerers

    connect(config.cluster)
    console = Console()
    print(f"{len(questions)} questions, asked as {config.policy.question_template!r}", flush=True)
    with Answerers(config, actors) as answerers:
        answers = zip(left, answerers.answer(left), strict=True)
        for batch, said in track(answers, "asking", len(left), console=console, disable=not console.is_terminal):
            for asked, answer in zip(batch, said, strict=True):
                if (MODE, 0, asked.prompt_id) not in results.records:
                    results.append(_record(asked, answer))


def _record(asked: Asked, said: str) -> dict[str, Any]:
    about = {name: getattr(asked, name) for name in ("prompt_id", "category", "image")}
    answers = {"label": _word(asked.answer), "answer": _word(pope.says_yes(said)), "said": said}
    return {"mode": MODE, "seed": 0, **about, "prompt": asked.text, **answers}


def _word(yes: bool) -> str:
    return "yes" if yes else "no"


def _report(
    checkpoint: str,
    questions: Sequence[Asked],
    results: Results,
    base: tuple[str, list[dict[str, Any]]] | None,
) -> dict[str, Any]:
    """Table on the terminal, summary.json and row.md in the folder."""
    said = [results.records[MODE, 0, asked.prompt_id]["said"] for asked in questions]
    console = Console(highlight=False)
    summary = pope.summarise(questions, {MODE: said})
    summaries = {label(checkpoint): summary}
    shown = summary
    if base:
        names = both_labels(checkpoint, base[0])
        before = [record["said"] for record in base[1]]
        shown = pope.summarise(questions, dict(zip(names, (said, before), strict=True)))
        summaries = {names[1]: pope.summarise(questions, {MODE: before}), **summaries}
        summary["against"] = {"checkpoint": base[0], MODE: shown["figures"]}
    show(f"{UNDERSTANDING}: {checkpoint}", shown, console, WORDS)
    print(write_summary(results.out, summary, summaries, WORDS), end="")
    console.print(f"results.jsonl, summary.json, row.md in {results.out}", soft_wrap=True)
    return summary
