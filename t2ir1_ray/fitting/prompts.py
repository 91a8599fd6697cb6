"""Do the prompts fit? Into the policy's lengths and into a step; asked once, before anything is started with them."""

import hashlib
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from t2ir1_ray.config import Config
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.prompts import read_prompts
from t2ir1_ray.storage import cache_folder

if TYPE_CHECKING:
    from t2ir1_ray.janus.policy import PromptFormat

REMEMBERED_FROM = 500
"""Fewer prompts are tokenized again rather than remembered."""
NAMED_ROWS = 5


def training_prompts(config: Config) -> tuple[pa.Table, int]:
    """(the prompts to train on, how many were too long and skipped). Raises UserError if they do not fill a step."""
    table, skipped = _fitting_prompts(config.data.prompts, "data.prompts", config)
    count = config.data.prompts_per_step
    if len(table) < count:
        raise UserError(
            f"data.prompts_per_step={count}: {config.data.prompts} has {len(table)} prompts, and those of a step are "
            "distinct: lower it, or give more prompts"
        )
    return table, skipped


def heldout_prompts(config: Config) -> pa.Table:
    """The prompts to evaluate with, without those that were too long and skipped."""
    return _fitting_prompts(config.eval.prompts, "eval.prompts", config)[0]


def _fitting_prompts(path: str, option: str, config: Config) -> tuple[pa.Table, int]:
    """(the prompts of a file that fit, how many do not and were skipped); see `check_tokens`."""
    from t2ir1_ray.janus.policy import PromptFormat, load_tokenizer

    table = read_prompts(path, option)
    form = PromptFormat(load_tokenizer(config.policy.path), config.policy)
    rows = check_tokens(table["prompt"].to_pylist(), form, config, f"{option}: {path}")
    return table.take(rows), len(table) - len(rows)


def check_tokens(prompts: Sequence[str], form: "PromptFormat", config: Config, source: str = "prompts") -> list[int]:
    """Indices of the prompts that fit: into policy.max_prompt_tokens when the policy plans, and beside the longest plan
    and the image into the model's positions when it draws. Also says so if the checkpoint does not know a word.

    Others are refused with a UserError that begins with `source` and names rows from 1, or with data.too_long=skip left
    out and counted on stderr.
    """
    limit, room = config.policy.max_prompt_tokens, _room(config)
    plan, image, unknown = _measure(prompts, form, config)
    too_long = np.flatnonzero((plan > limit) | (image > room))
    if len(too_long):
        first = int(too_long[0])
        rows = ", ".join(str(row + 1) for row in too_long[:NAMED_ROWS]) + ", ..." * (len(too_long) > NAMED_ROWS)
        short = textwrap.shorten(prompts[first], 60)
        over = f"{plan[first]} tokens with its instruction, over policy.max_prompt_tokens={limit}"
        if plan[first] <= limit:
            over = f"{image[first]} tokens, over the {room} that plan and image leave of the model's positions"
        what = f"{len(too_long)} of {len(prompts)} prompts too long (rows {rows}): the first, {short!r}, has {over}"
        if config.data.too_long == "refuse" or len(too_long) == len(prompts):
            raise UserError(f"{source}: {what}: shorten them, raise the limit, or skip them with data.too_long=skip")
        print(f"note: {source}: skipped {what}", file=sys.stderr)
    fitting = np.setdiff1d(np.arange(len(prompts)), too_long)
    unknown = fitting[unknown[fitting] > 0]
    if len(unknown):
        others = f" and {len(unknown) - 1} other prompts" if len(unknown) > 1 else ""
        short = textwrap.shorten(prompts[int(unknown[0])], 60)
        print(f"note: the checkpoint does not know every word of {short!r}{others}", file=sys.stderr)
    return fitting.tolist()


def _room(config: Config) -> int:
    """Tokens that an image prompt may have without its plan. Raises UserError if there is none, or none for plans."""
    from t2ir1_ray.janus.policy import image_size, load_config

    janus, policy = load_config(config.policy.path), config.policy
    positions, (image_tokens, _) = janus.text_config.max_position_embeddings, image_size(janus)
    room = positions - image_tokens - policy.max_plan_tokens
    if policy.max_prompt_tokens + policy.max_plan_tokens > positions or room < 1:
        raise UserError(
            f"policy.max_plan_tokens={policy.max_plan_tokens}: with policy.max_prompt_tokens={policy.max_prompt_tokens}"
            f" or the {image_tokens} tokens of an image, more than the model's {positions} positions: lower them"
        )
    return room


def _measure(prompts: Sequence[str], form: "PromptFormat", config: Config) -> np.ndarray:
    """(3, N): tokens of the planning prompt and of the image prompt without a plan, and whether a word is unknown.

    Those of a large file are remembered in the user's cache, by a digest of all that they depend on.
    """
    file = _memory(prompts, config) if len(prompts) >= REMEMBERED_FROM else None
    if file:
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged
            found = np.load(file, allow_pickle=False)
            if found.shape == (3, len(prompts)):
                return found
    plans = [form.plan_prompt_ids(prompt) for prompt in prompts]
    images = [len(form.image_prompt_ids(prompt, "")) for prompt in prompts]
    unknown = form.tokenizer.unk_token_id
    measured = np.array([list(map(len, plans)), images, [unknown in ids for ids in plans]], np.int64).reshape(3, -1)
    if file:
        with suppress(OSError):  # nobody has to have a cache
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, measured)
            partial.replace(file)
    return measured


def _memory(prompts: Sequence[str], config: Config) -> Path:
    """Where the lengths of these prompts are remembered."""
    import transformers

    from t2ir1_ray.checkpoints.folder import resolve_checkpoint

    policy = config.policy
    state = hashlib.sha256(json.dumps([transformers.__version__, policy.plan_system, policy.plan_template]).encode())
    for file in sorted(resolve_checkpoint(policy.path, "policy.path").iterdir()):
        if file.is_file() and any(word in file.name for word in ("token", "vocab", "merges")):
            state.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    state.update(json.dumps(prompts).encode())
    return cache_folder() / "prompt_tokens" / f"{state.hexdigest()[:32]}.npy"
