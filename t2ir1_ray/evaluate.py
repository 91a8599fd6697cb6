"""`python -m t2ir1_ray.evaluate --checkpoint C --benchmark NAME`: its numbers, with and without semantic-CoT.

Runs on Ray: rollout actors draw, the benchmark's judges look at the images as they come. Every finished prompt is a
line on the disk, so the same command goes on where an interrupted one stopped. With `--benchmark understanding` the
checkpoint draws nothing: it is asked about images, see `benchmarks.understanding`.
"""

import argparse
import dataclasses
import hashlib
import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from t2ir1_ray.benchmarks import BENCHMARKS, UNDERSTANDING
from t2ir1_ray.benchmarks.base import Benchmark, Found, Item, View
from t2ir1_ray.benchmarks.results import (
    Results,
    against,
    beside,
    both_labels,
    default_folder,
    label,
    read_base,
    show,
    summarise,
    write_summary,
)
from t2ir1_ray.checkpoints.folder import contents_digest, resolve_checkpoint
from t2ir1_ray.config import Config, ExpertConfig
from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting.judges import expert_configs
from t2ir1_ray.fitting.prompts import check_tokens
from t2ir1_ray.generate import check_numbers, checkpoint_config, kept, save_png
from t2ir1_ray.records.schema import PROMPT_SCHEMA, Rollouts
from t2ir1_ray.records.textfile import read_text
from t2ir1_ray.storage import OneWriter, write_whole

MODES = {"semantic-CoT": True, "prompt only": False}
OF_DRAWING = (
    *("plans", "seeds", "num_images", "cfg", "temperature", "expert"),
    *("judge_url", "judge_model", "judge_key_env", "judge_threads", "judge_template"),
)
"""Options that say nothing where no image is drawn."""
PENDING = 64
"""Prompts whose images are drawn while their judges still look."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is evaluated, and how images are sampled."""

    benchmark: Benchmark
    items: list[Item]
    config: Config
    modes: list[str]
    seeds: list[int]
    num_images: int
    guidance: float
    temperature: float

    def sampling(self, mode: str, seed: int) -> Any:
        from actors.sampling import Sampling

        return Sampling(
            self.num_images, self.temperature, self.guidance, seed, f"evaluate {self.benchmark.name}", MODES[mode]
        )


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    _check(options)
    if options.benchmark == UNDERSTANDING:
        _understand(options, arguments)
        return
    if options.images:
        raise UserError(f"--images: {options.images}: only with --benchmark {UNDERSTANDING}")
    config = checkpoint_config(options.checkpoint, options.config, options.overrides)
    benchmark = BENCHMARKS[options.benchmark]({})
    items = benchmark.read(options.prompts)[: options.limit]
    if not items:
        raise UserError(f"--prompts: {options.prompts} holds no prompts")
    needed = benchmark.judges(items)
    remote = bool(config.cluster.address or os.environ.get("RAY_ADDRESS"))
    gpus = config.rollout.num_gpus > 0
    experts = expert_configs(benchmark.needs, needed & benchmark.needs.keys(), options.expert, gpus, remote)
    if "judge" in needed and not (options.judge_url and options.judge_model):
        raise UserError(f"--judge-url, --judge-model: {options.benchmark} is judged by a model: name its endpoint")
    if options.judge_url and not options.judge_url.startswith(("http://", "https://")):
        raise UserError(f"--judge-url: {options.judge_url}: must begin with http:// or https://")
    benchmark.experts = experts
    if options.judge_template:
        benchmark.template = _template(options.judge_template)
    from t2ir1_ray.janus.policy import PromptFormat, load_tokenizer

    form = PromptFormat(load_tokenizer(config.policy.path), config.policy)
    fitting = check_tokens(
        [item.prompt for item in items], form, config, f"--prompts: {options.prompts or options.benchmark}"
    )
    skipped, items = len(items) - len(fitting), [items[row] for row in fitting]
    job = Job(
        benchmark,
        items,
        config,
        {"both": list(MODES), "with": ["semantic-CoT"], "without": ["prompt only"]}[options.plans],
        options.seeds,
        options.num_images or benchmark.images_per_prompt,
        config.rollout.guidance if options.cfg is None else options.cfg,
        config.rollout.temperature if options.temperature is None else options.temperature,
    )
    made_with = settings(job, experts, options)
    if skipped:
        made_with["notes"] |= {"prompts": f"{skipped} were too long and skipped: not the published benchmark"}
    base = None
    if options.against:
        wanted = [(mode, seed, item.prompt_id) for mode in job.modes for seed in job.seeds for item in items]
        base = read_base(options.against, made_with, wanted)
    out = kept(options.out or default_folder(options.benchmark, config.policy.path))
    with OneWriter(out, "--out"):
        results = Results(out, made_with)
        _draw_and_judge(job, experts, options, needed, results)
        report(job, results, config.policy.path, base)


def _understand(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    from t2ir1_ray.benchmarks import understanding

    parser = _parser()
    parser.set_defaults(**dict.fromkeys(OF_DRAWING))
    told = vars(parser.parse_args(arguments))
    if given := [name for name in OF_DRAWING if told[name] is not None]:
        raise UserError(
            f"--{given[0].replace('_', '-')}: means nothing with --benchmark {UNDERSTANDING}, which draws no images: "
            "leave it out"
        )
    questions = understanding.read(options.prompts, options.images)[: options.limit]
    config = checkpoint_config(options.checkpoint, options.config, options.overrides)
    out = kept(options.out or default_folder(UNDERSTANDING, config.policy.path))
    understanding.evaluate(config, questions, options.prompts, out, options.against, options.actors)


def _draw_and_judge(
    job: Job, experts: dict[str, ExpertConfig], options: argparse.Namespace, needed: set[str], results: Results
) -> None:
    """On Ray, if anything is left to do."""
    if any(todo(job, results).values()):
        from actors.connect import connect
        from t2ir1_ray.benchmarks.devices import Devices
        from t2ir1_ray.benchmarks.judge import Judge

        connect(job.config.cluster)
        key = os.environ.get(options.judge_key_env)
        asking = (options.judge_url, options.judge_model, key, options.judge_threads)
        judge = Judge(*asking, **job.benchmark.judge_options) if "judge" in needed else None
        with Devices(job.config, experts, options.actors, judge) as devices:
            run(job, devices, results)


def todo(job: Job, results: Results) -> dict[tuple[str, int], list[Item]]:
    """(mode, seed) -> prompts without a result."""
    return {
        (mode, seed): [item for item in job.items if (mode, seed, item.prompt_id) not in results.records]
        for mode in job.modes
        for seed in job.seeds
    }


def run(job: Job, devices: Any, results: Results) -> None:
    """Draw and judge every prompt that has no result yet."""
    per_call = max(1, job.config.rollout.prompts_per_call * job.config.rollout.group_size // job.num_images)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for (mode, seed), items in todo(job, results).items():
            bar = progress.add_task(f"{mode}, seed {seed}", total=len(items))
            pending: deque[tuple[Item, Any, dict[str, Any]]] = deque()
            for row, drawn in devices.sample(_table(items), job.sampling(mode, seed), per_call) if items else ():
                pending.append((items[row], drawn, job.benchmark.observe(items[row], drawn, devices.call)))
                while pending and (len(pending) > PENDING or devices.ready(pending[0][2])):
                    results.append(_finish(job, devices, results.out, mode, seed, *pending.popleft()))
                    progress.advance(bar)
            while pending:
                results.append(_finish(job, devices, results.out, mode, seed, *pending.popleft()))
                progress.advance(bar)
            if items and not console.is_terminal:
                print(f"{mode}, seed {seed}: {len(items)} prompts drawn and judged", flush=True)


def report(
    job: Job, results: Results, checkpoint: str, base: tuple[str, list[dict[str, Any]]] | None
) -> dict[str, Any]:
    """Tables on the terminal, summary.json and row.md in the folder; returns the summary.

    base: another checkpoint and its records, which this one is compared with.
    """
    results.close()
    wanted = {item.prompt_id for item in job.items}
    records = [r for (_, seed, prompt), r in results.records.items() if prompt in wanted and seed in job.seeds]
    summary = summarise(job.benchmark, job.items, records, job.modes)
    console = Console(highlight=False)
    summaries = {label(checkpoint): summary}
    show(f"{job.benchmark.name}: {checkpoint}", summary, console)
    if base:
        names = both_labels(checkpoint, base[0])
        summaries = {names[1]: summarise(job.benchmark, job.items, base[1], job.modes)} | summaries
        show(f"{job.benchmark.name}: both checkpoints", beside(summaries), console)
        compared = against(job.benchmark, job.items, records, base[1], job.modes, names)
        for mode, found in compared.items():
            show(f"{mode}: {names[0]} against {names[1]}", found, console)
        summary["against"] = {"checkpoint": base[0], **{mode: found["figures"] for mode, found in compared.items()}}
    print(write_summary(results.out, summary, summaries), end="")
    console.print(f"images, results.jsonl, summary.json, row.md in {results.out}", soft_wrap=True)
    return summary


def _finish(
    job: Job, devices: Any, out: Path, mode: str, seed: int, item: Item, drawn: Any, asked: dict[str, Any]
) -> dict[str, Any]:
    """Wait for a prompt's images and its judges' answers; save the images; its line of results.jsonl."""
    what = f"prompt {item.prompt_id}"
    samples = Rollouts.from_arrow(devices.result(drawn, what))
    answers = {name: devices.result(handle, what) for name, handle in asked.items()}
    folder = Path("images") / mode.replace(" ", "-") / f"seed_{seed}"
    for name, text in job.benchmark.sidecars(item).items():
        write_whole(out / folder / name, text)
    images = []
    for number, (plan, pixels) in enumerate(zip(samples.plan, samples.pixels, strict=True)):
        evidence = {name: found[number] for name, found in answers.items()}
        path = folder / job.benchmark.image_path(item, number, job.num_images)
        save_png(out / path, pixels, {"prompt": item.prompt, "plan": plan, "mode": mode, "seed": seed})
        scores = job.benchmark.score(item, View(plan, pixels, evidence))
        images.append({"image": str(path), "plan": plan, "scores": scores, "evidence": _plain(evidence)})
    return {
        "mode": mode,
        "seed": seed,
        "prompt_id": item.prompt_id,
        "prompt": item.prompt,
        "category": item.category,
        "images": images,
    }


def settings(job: Job, experts: dict[str, ExpertConfig], options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    prompts = "\n".join(f"{item.prompt_id}\t{item.prompt}" for item in job.items)
    return {
        "benchmark": job.benchmark.name,
        "checkpoint": job.config.policy.path,
        "checkpoint_digest": contents_digest(resolve_checkpoint(job.config.policy.path, "policy.path")),
        "prompts_path": str(options.prompts) if options.prompts else None,
        "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
        "num_prompts": len(job.items),
        "num_images": job.num_images,
        "seeds": job.seeds,
        "modes": job.modes,
        "cfg": job.guidance,
        "temperature": job.temperature,
        "policy": {
            k: v for k, v in dataclasses.asdict(job.config.policy).items() if k not in ("path", "question_template")
        },
        "experts": {n: {k: getattr(e, k) for k in ("kind", "path", "dtype", "options")} for n, e in experts.items()},
        "judge": options.judge_model,
        "judge_url": options.judge_url,
        "judge_template_sha256": hashlib.sha256(getattr(job.benchmark, "template", "").encode()).hexdigest(),
        "notes": job.benchmark.notes(),
    }


def _plain(evidence: dict[str, Any]) -> dict[str, Any]:
    """As JSON; masks are left out."""
    return {
        name: [[one.label, round(one.score, 4), [round(x, 1) for x in one.box]] for one in value]
        if isinstance(value, list) and value and isinstance(value[0], Found)
        else value
        for name, value in evidence.items()
    }


def _table(items: Sequence[Item]) -> pa.Table:
    rows = [{"prompt_id": item.prompt_id, "prompt": item.prompt, "task_type": "non"} for item in items]
    empty = dict.fromkeys(set(PROMPT_SCHEMA.names) - rows[0].keys())
    return pa.Table.from_pylist([row | empty for row in rows], schema=PROMPT_SCHEMA)


def _template(path: Path) -> str:
    text = read_text(path, "--judge-template")
    if "{prompt}" not in text:
        raise UserError(f"--judge-template: {path} lacks {{prompt}}")
    return text


def _check(options: argparse.Namespace) -> None:
    counts = dict.fromkeys(("num_images", "limit", "actors", "judge_threads"), (1, 10_000))
    check_numbers(options, {**counts, "cfg": (1, 100), "temperature": (0, 100)})
    if len(set(options.seeds)) != len(options.seeds):
        raise UserError(f"--seeds: {options.seeds}: a seed occurs twice")


def _parser() -> Parser:
    parser = Parser(prog="python -m t2ir1_ray.evaluate", description="Evaluate a policy on a benchmark.")
    add = parser.add_argument
    add("--checkpoint", help="folder or hub id; default: the shapes policy that comes with this package")
    add("--benchmark", required=True, choices=[*BENCHMARKS, UNDERSTANDING])
    add("--prompts", type=Path, metavar="PATH", help="the benchmark's own prompt file or folder, as published")
    add("--images", type=Path, metavar="DIR", help="understanding: the folder of the images that --prompts asks about")
    add("--config", help="how the checkpoint is prompted: shapes, janus_pro_1b, janus_pro_7b or a YAML file")
    add("--out", type=Path, metavar="DIR", help="default: evaluations/<benchmark>-<checkpoint>; resumed if it exists")
    add("--against", type=Path, metavar="DIR", help="finished evaluation of another checkpoint, to compare with")
    add("--plans", choices=("both", "with", "without"), default="both", help="semantic-CoT (default: both)")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--num-images", type=int, help="per prompt and seed (default: as the benchmark publishes)")
    add("--limit", type=int, help="only the first prompts")
    add("--cfg", type=float, help="guidance scale, 1: none (default: the configuration's)")
    add("--temperature", type=float, help="of plan and image, 0: greedy (default: the configuration's)")
    add("--actors", type=int, help="rollout actors (default: all GPUs that the judges leave)")
    add("--expert", action="append", default=[], metavar="NAME.KEY=VALUE", help="e.g. detector.path=PATH; repeatable")
    add("--judge-url", help="OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1")
    add("--judge-model", help="the model's name at that endpoint")
    add("--judge-key-env", default="OPENAI_API_KEY", metavar="NAME", help="environment variable with the key")
    add("--judge-threads", type=int, default=8, help="questions asked at once")
    add("--judge-template", type=Path, metavar="FILE", help="own instruction with {prompt} and {explanation}")
    add("overrides", nargs="*", metavar="section.key=value", help="of the configuration, e.g. rollout.num_gpus=0.5")
    return parser


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
