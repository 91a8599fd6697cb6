"""`python -m t2ir1_ray.generate PROMPT ...`: plans and images for prompts, in this process, on the GPU or on CPUs.

The same checkpoint, prompt, seed and settings give the same image, whatever other prompts are asked for beside it.
"""

import argparse
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import track

from actors.sampling import Sampling
from actors.startup import uncollected
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.errors import RunError, UserError, reason
from t2ir1_ray.fitting.prompts import check_tokens
from t2ir1_ray.records.prompts import TABLE_ENDINGS, read_texts
from t2ir1_ray.storage import AppendedLines, OneWriter, disk_failure, whole_file, write_whole

if TYPE_CHECKING:
    from transformers import JanusConfig

    from actors.sampler import Sampler
    from t2ir1_ray.janus.policy import PromptFormat

RESULTS = "results.jsonl"
TILE_PX = 240
LINE_PX = 17
GRID_IMAGES = 64
"""The grid shows at most so many images; the folder holds all of them."""
COLDEST = 0.01
"""Logits divided by less overflow; vLLM raises lower temperatures to this one."""

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    config = checkpoint_config(options.checkpoint, options.config)
    prompts = [*options.prompt, *(read_texts(options.prompts, "--prompts") if options.prompts else [])]
    if not prompts:
        raise UserError('no prompt: give some, such as "a red circle above a blue square", or --prompts FILE')
    _check(options, prompts)
    with uncollected():
        from t2ir1_ray.janus.policy import PromptFormat, load_tokenizer

        form = PromptFormat(load_tokenizer(config.policy.path), config.policy)
    prompts = [prompts[row] for row in check_tokens(prompts, form, config)]
    if options.plan:
        check_plan(options.plan, form, config)
    out = kept(options.out or Path("generated") / time.strftime("%Y%m%d-%H%M%S"))
    with new_folder(out):
        records = _generate(options, config, prompts, out)
        write_grid(out, records, options.num_images)
    Console(highlight=False).print(f"{len(records)} images in {out}: grid.png, results.jsonl", soft_wrap=True)


def _generate(options: argparse.Namespace, config: Config, prompts: Sequence[str], out: Path) -> list[dict[str, Any]]:
    """After all that can be known to be wrong without the model: the engine takes seconds."""
    print(f"{len(prompts)} prompts, {options.num_images} images of each, with {config.policy.path}", flush=True)
    with engine(config) as sampler:
        guidance = config.rollout.guidance if options.cfg is None else options.cfg
        temperature = config.rollout.temperature if options.temperature is None else options.temperature
        sampling = Sampling(
            options.num_images, temperature, guidance, options.seed, "generate", not options.no_plan, options.plan
        )
        batch_size = options.batch_size or config.rollout.prompts_per_call * config.rollout.group_size
        return draw(sampler, prompts, sampling, batch_size, out, {"checkpoint": config.policy.path})


def checkpoint_config(checkpoint: str | None, name: str | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration that says how `checkpoint` is prompted: `name` if given, else that of the run it comes from,
    else `shapes`. No checkpoint: the one that the configuration names. Raises UserError if none of them can know."""
    if name is None and checkpoint is not None:
        of_run = Path(checkpoint).expanduser().resolve().parent.parent / "config.yaml"  # run/checkpoints/step_000120
        name = str(of_run) if of_run.is_file() else None
    config = configuration.load(name or "shapes", overrides)
    config.rollout.weight_transfer = "object_store"  # nothing is transferred: no NCCL group is waited for
    if checkpoint is not None:
        config.policy.path = configuration.everywhere(checkpoint)
    from t2ir1_ray.fitting.limits import check_limits
    from t2ir1_ray.janus.policy import checked_tensors, load_config

    policy = load_config(config.policy.path)
    if name is None and _vocabulary(policy) != _vocabulary(load_config(configuration.load().policy.path)):
        raise UserError(
            f"--config: {config.policy.path} is neither built like the shapes policy nor a run's: say how it is "
            "prompted, e.g. --config janus_pro_7b"
        )
    check_limits(config, policy)
    checked_tensors(config.policy.path, policy)
    return config


def _vocabulary(policy: "JanusConfig") -> tuple[int, int]:
    """Text tokens, image codes."""
    return policy.text_config.vocab_size, policy.vq_config.num_embeddings


def kept(out: Path) -> Path:
    """The folder. Raises UserError if it would be gone when the job is over."""
    if fault := configuration.in_submitted_copy(out):
        raise UserError(f"--out: {out} {fault}")
    return out


def new_folder(path: Path) -> OneWriter:
    """The right to write into a folder without results in it. Raises UserError if it has some or cannot be made."""
    writer = OneWriter(path, "--out")
    if (path / RESULTS).exists():
        writer.release()
        raise UserError(f"--out: {path} holds results already: choose another folder")
    write_whole(path / RESULTS, "")
    return writer


@contextmanager
def engine(config: Config) -> Iterator["Sampler"]:
    """A sampler in this process, holding the checkpoint; its engine ends with the context."""
    from actors.engine_environment import CPU_ENVIRONMENT, ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    import torch

    if not torch.cuda.is_available():
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with uncollected():
        from actors.sampler import Sampler

        with _engine_failure("start"):
            sampler = Sampler(config.policy, config.rollout, awaits_weights=False)
    try:
        yield sampler
    finally:
        sampler.engine.close()


@contextmanager
def _engine_failure(what: str) -> Iterator[None]:
    """What vLLM, torch and the driver raise, of any class, as one line with its cause."""
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        raise RunError(f"rollout: {what} failed: {reason(error)}") from None


def check_plan(plan: str, form: "PromptFormat", config: Config) -> None:
    """Raises UserError if a plan of the user's own is longer than the policy's may be."""
    length, limit = len(form.tokenizer(plan, add_special_tokens=False)["input_ids"]), config.policy.max_plan_tokens
    if length > limit:
        raise UserError(f"--plan: {length} tokens, over policy.max_plan_tokens={limit}: shorten it")


def check_numbers(options: argparse.Namespace, limits: Mapping[str, tuple[float, float]]) -> None:
    """limits: option -> (least, most). Raises UserError; an option that was not given passes."""
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: {value}: must be at least {least} and at most {most}")
    if options.temperature is not None and 0 < options.temperature < COLDEST:
        raise UserError(f"--temperature: {options.temperature}: must be 0 (greedy) or at least {COLDEST}")


def save_png(path: Path, pixels: np.ndarray, texts: dict[str, Any]) -> None:
    """pixels: (H, W, 3) uint8. `texts` go into the file's text chunks (iTXt: any language). Raises RunError if the disk
    fails."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, str(value))
    with disk_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        Image.fromarray(pixels).save(file, "PNG", pnginfo=info)


def draw(
    sampler: "Sampler",
    prompts: Sequence[str],
    sampling: "Sampling",
    batch_size: int,
    out: Path,
    about: dict[str, str],
) -> list[dict[str, Any]]:
    """Sample and save everything; a record per image, on the disk as soon as its image is."""
    wanted = [(row, number) for row in range(len(prompts)) for number in range(sampling.group_size)]
    batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    console = Console()
    records = []
    with closing(AppendedLines(out / RESULTS)) as results:
        for batch in track(batches, "drawing", console=console, disable=not console.is_terminal):
            # The text itself is the id that seeds are made of, so that a prompt's place in the list does not matter.
            rows = [{"prompt_id": prompts[row], "prompt": prompts[row]} for row, _ in batch]
            with _engine_failure(f"prompt {batch[0][0]}"):
                samples = sampler.sample(rows, [number for _, number in batch], sampling, vq_batch=1)
            for index, (row, number) in enumerate(batch):
                record = {
                    "prompt": prompts[row],
                    "plan": samples.plan[index],
                    "plan_source": "none" if not sampling.semantic_cot else "given" if sampling.plan else "policy",
                    "sample": number,
                    "seed": sampling.seed,
                    "cfg": sampling.guidance,
                    "temperature": sampling.temperature,
                    **about,
                }
                name = f"{row:05d}_{number}.png"
                save_png(out / name, samples.pixels[index], record)
                results.append(json.dumps({"image": name, **record}, ensure_ascii=False))
                records.append({"image": name, **record})
    return records


def write_grid(out: Path, records: Sequence[dict[str, Any]], columns: int) -> None:
    """grid.png: one row per prompt, its images side by side, prompt above and plans beneath."""
    shown = records[: max(columns, GRID_IMAGES // columns * columns)]
    font = _font()
    wide = max(columns * (TILE_PX + 8), 420)
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    texts = [
        (wrap(row[0]["prompt"], wide - 8, font), [wrap(r["plan"] or "(no plan)", TILE_PX, font) for r in row])
        for row in rows
    ]
    heights = [
        TILE_PX + LINE_PX * len(prompt) + LINE_PX * max(len(plan) for plan in plans) + 14 for prompt, plans in texts
    ]
    sheet = Image.new("RGB", (wide, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row, (prompt, plans), height in zip(rows, texts, heights, strict=True):
        _write(draw, 4, top + 3, prompt, "black", font)
        y = top + LINE_PX * len(prompt) + 6
        for column, (record, plan) in enumerate(zip(row, plans, strict=True)):
            x = column * (TILE_PX + 8) + 4
            sheet.paste(_tile(out / record["image"]), (x, y))
            _write(draw, x, y + TILE_PX + 2, plan, "#555555", font)
        top += height
    with whole_file(out / "grid.png") as file:
        sheet.save(file, "PNG")


def _tile(file: Path) -> Image.Image:
    """Small images keep their pixels; large ones are reduced smoothly."""
    with Image.open(file) as image:
        method = Image.Resampling.NEAREST if image.width < TILE_PX else Image.Resampling.LANCZOS
        return image.resize((TILE_PX, TILE_PX), method)


def wrap(text: str, width: float, font: Font, lines: int = 6) -> list[str]:
    """At most so many lines of at most `width` pixels; a text that needs more ends in dots."""
    found = [""]
    for word in re.findall(r"\S+", text):
        if found[-1] and font.getlength(f"{found[-1]} {word}") > width:
            found.append("")
        found[-1] = f"{found[-1]} {word}" if found[-1] else word
        while len(found[-1]) > 1 and font.getlength(found[-1]) > width:  # a word longer than a line
            fits = next(n for n in range(len(found[-1]) - 1, 0, -1) if n == 1 or font.getlength(found[-1][:n]) <= width)
            found[-1:] = [found[-1][:fits], found[-1][fits:]]
    if len(found) <= lines:
        return found
    last = found[lines - 1]
    while last and font.getlength(f"{last} ...") > width:
        last = last[:-1]
    return [*found[: lines - 1], f"{last} ..."]


def _font() -> Font:
    """Pillow's own font knows ASCII only: DejaVu, which most systems have, knows most alphabets."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", 12)
    except OSError:
        return ImageFont.load_default(13)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], colour: str, font: Font) -> None:
    for number, line in enumerate(lines):
        draw.text((x, y + number * LINE_PX), line, fill=colour, font=font)


def _check(options: argparse.Namespace, prompts: Sequence[str]) -> None:
    if options.plan is not None and options.no_plan:
        raise UserError("--plan and --no-plan: give one of them")
    if options.plan is not None and not _is_text(options.plan):
        raise UserError("--plan: is empty or holds characters that are no text: give a text, or --no-plan")
    check_numbers(
        options, {"num_images": (1, 10_000), "batch_size": (1, 10_000), "cfg": (1, 100), "temperature": (0, 100)}
    )
    for prompt in prompts:
        if not _is_text(prompt):
            raise UserError(f"prompt {prompt!r:.60}: is empty or holds characters that are no text")


def _is_text(text: str) -> bool:
    return bool(text.strip()) and "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _parser() -> Parser:
    parser = Parser(prog="python -m t2ir1_ray.generate", description="Plan and draw prompts with a policy.")
    parser.add_argument("prompt", nargs="*", metavar="PROMPT")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help=f".txt with one prompt per line; or {', '.join(TABLE_ENDINGS)}"
    )
    parser.add_argument(
        "--checkpoint", help="folder or hub id; default: the shapes policy that comes with this package"
    )
    parser.add_argument(
        "--config", help="how the checkpoint is prompted: shapes, janus_pro_1b, janus_pro_7b or a YAML file"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder (default: generated/<time>)")
    parser.add_argument("--num-images", type=int, default=1, help="per prompt (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg", type=float, help="guidance scale, 1: none (default: the configuration's)")
    parser.add_argument("--temperature", type=float, help="of plan and image, 0: greedy (default: the configuration's)")
    parser.add_argument("--plan", metavar="TEXT", help="draw after this plan instead of the policy's own")
    parser.add_argument("--no-plan", action="store_true", help="draw from the prompt alone, without semantic-CoT")
    parser.add_argument("--batch-size", type=int, help="images drawn at once (default: one rollout call of training)")
    return parser


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
