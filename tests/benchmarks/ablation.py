"""`python -m tests.benchmarks.ablation [--seeds 0,1,2] [--only NAME,...] [--steps N] [--plot FILE.svg] [--table]`.

What each part of the recipe is worth on the shapes world: trains every variant with every seed, one after the other,
and compares them on the held-out prompts by the exact verifier, which is no part of any reward. Finished runs under
`--root` are skipped and unfinished ones resumed, so an interrupted command is simply given again; `--table` only reads.

Errors behind +- are standard errors of the mean over seeds. All runs are evaluated on the same prompts with the same
sampling seeds: they tell how much training varies, not what other prompts would give; the base has no training, its
error is that of the prompts.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from t2ir1_ray import config as configuration  # noqa: E402
from t2ir1_ray.config import Config  # noqa: E402
from t2ir1_ray.entry import Parser, run_entry  # noqa: E402
from t2ir1_ray.errors import RunError, UserError  # noqa: E402
from tests.journals import metrics  # noqa: E402

EXPERTS = ("hps", "git", "grounding_dino", "orm")
GUIDED = ("rollout.guidance=1.5", "learner.image_logprobs=guided")
CREDIT = ("entropy", "similarity", "critical")
VARIANTS: dict[str, tuple[str, ...]] = {
    "semantic": ("learner.image_weight=0",),
    "token": ("learner.semantic_weight=0",),
    "both": (),
    "nested": ("rollout.images_per_plan=2", "learner.advantages=nested"),
    "guided": GUIDED,
    "gdpo": ("reward.combine=gdpo",),
    **{one: tuple(f"experts.{other}.role=monitor" for other in EXPERTS if other != one) for one in EXPERTS},
    **{f"without_{one}": (f"experts.{one}.role=monitor",) for one in EXPERTS},
    **{f"credit_{kind}": (f"learner.token_credit={kind}",) for kind in CREDIT},
    "credit_guidance": (*GUIDED, "learner.token_credit=guidance"),  # against `guided`
    "band": ("learner.entropy_band=[0.9,1.1]",),
}
"""Overrides over the shapes configuration. `both` is the recipe itself; an expert's name: it alone is the reward."""
KINDS = {"attribute": ("color", "shape", "texture"), "relation": ("spatial", "non"), "count": ("numeracy",)}
"""Kind of prompt -> its task types. Those of `object` have none of the three, those of `complex` several."""
ENDS = 10
"""Steps at either end of a run over which rewards are averaged."""


@dataclass(frozen=True)
class Figures:
    """One run: held-out accuracy before and after, sums of expert scores at its first and last steps."""

    before: dict[str, float]  # heldout/* of step 0
    after: dict[str, float]  # of the last step
    guidance: float
    rewarded: tuple[float, float]  # mean training reward in raw scores: also under gdpo, whose own mean is always 0
    others: tuple[float, float]  # of the experts that only watch


@dataclass(frozen=True)
class Row:
    """One line of the table. Shares are (mean, standard error over seeds; None with one seed)."""

    name: str
    seeds: int
    accuracy: tuple[float, float | None]
    greedy: tuple[float, float | None]
    change: tuple[float, float | None] | None = None  # of accuracy since step 0 of the same run
    change_greedy: tuple[float, float | None] | None = None
    rewarded: tuple[float, float] | None = None  # first and last steps
    others: tuple[float, float] | None = None
    kinds: dict[str, tuple[float, float | None]] = field(default_factory=dict)  # accuracy, T = 1, on each of KINDS


def folder(root: Path, variant: str, seed: int) -> Path:
    return root / f"{variant}-seed{seed}"


def read(run: Path) -> Figures | None:
    """The figures of a run folder, None as long as the run is not over."""
    lines = metrics(run)
    if not lines or not (run / configuration.FILE).is_file():
        return None
    config = configuration.load(str(run / configuration.FILE))
    steps = [line for line in lines if line["step"]]
    if lines[-1]["step"] < config.train.steps or "heldout/accuracy" not in lines[0]:
        return None
    names = {role: [n for n, e in config.experts.items() if e.role == role] for role in ("reward", "monitor")}
    ends = [steps[:ENDS], steps[-ENDS:]]
    rewarded, others = (tuple(_scores(end, names[role], config) for end in ends) for role in ("reward", "monitor"))
    return Figures(lines[0], lines[-1], config.rollout.guidance, rewarded, others)


def rows(root: Path, names: Iterable[str], seeds: Iterable[int]) -> list[Row]:
    """The table of what is finished: the base (once per guidance), then the variants in order."""
    seeds = list(seeds)
    found = {name: [x for x in (read(folder(root, name, seed)) for seed in seeds) if x] for name in names}
    bases = {run.guidance: run.before for runs in reversed(found.values()) for run in reversed(runs)}
    table = [_base(guidance, line) for guidance, line in sorted(bases.items())]
    return table + [_row(name, runs) for name, runs in found.items() if runs]


def markdown(table: Sequence[Row]) -> str:
    lines = [
        "| variant | seeds | accuracy, T = 1 | change | accuracy, greedy | change | "
        + " | ".join(KINDS)
        + " | reward | unrewarded experts |",
        "| --- |" + " ---: |" * (7 + len(KINDS)),
    ]
    for row in table:
        cells = [
            row.name,
            str(row.seeds or ""),
            _percent(row.accuracy),
            _percent(row.change, signed=True),
            _percent(row.greedy),
            _percent(row.change_greedy, signed=True),
            *(_percent(row.kinds.get(kind)) for kind in KINDS),
            _arrow(row.rewarded),
            _arrow(row.others),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"\nReward, unrewarded experts: mean sum of raw scores, first {ENDS} -> last {ENDS} steps.")
    return "\n".join(lines)


def plot(table: Sequence[Row], path: Path) -> None:
    """Bars of held-out accuracy, T = 1 and greedy, with the base as lines behind them."""
    variants = [row for row in table if row.change]
    base = next(row for row in table if not row.change)
    figure, axes = plt.subplots(figsize=(7, 1.3 + 0.45 * len(variants)), layout="constrained")
    places = np.arange(len(variants))
    kinds = (("T = 1", "accuracy", "#3b6ea5", -0.2), ("greedy", "greedy", "#e39b3a", 0.2))
    for label, share, colour, offset in kinds:
        values = [getattr(row, share) for row in variants]
        axes.barh(
            places + offset,
            [100 * mean for mean, _ in values],
            0.38,
            xerr=[100 * (error or 0) for _, error in values],
            color=colour,
            ecolor="#333333",
            capsize=2,
            label=label,
        )
        axes.axvline(100 * getattr(base, share)[0], color=colour, linestyle="--", linewidth=1, label=f"base, {label}")
    axes.set_yticks(places, [row.name for row in variants])
    axes.invert_yaxis()
    axes.set(xlabel="held-out exact accuracy (%), mean and standard error over seeds", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def command(root: Path, variant: str, seed: int, steps: int | None) -> list[str]:
    """What trains a run, or goes on with it where it has reported anything."""
    run = folder(root, variant, seed)
    overrides = ["cluster.dashboard=false", f"journal.root={root}", f"journal.name={run.name}", f"train.seed={seed}"]
    overrides += [*VARIANTS[variant], *([f"train.steps={steps}"] if steps else [])]
    overrides += ["eval.every=${train.steps}", "journal.save_every=60", "journal.dump_every=0"]  # the ends are compared
    resume = ["--resume", str(run)] if metrics(run) else []
    return [sys.executable, "-m", "t2ir1_ray.train", *resume, *overrides]


def train(root: Path, variant: str, seed: int, steps: int | None) -> bool:
    """Run it to its end, output in `train.log` of its folder. If this process is interrupted, the run saves first."""
    run = folder(root, variant, seed)
    run.mkdir(parents=True, exist_ok=True)
    log = run / "train.log"
    with (
        log.open("a") as output,
        subprocess.Popen(
            command(root, variant, seed, steps), stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            failed = process.wait() != 0
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if failed:
        said = [line for line in log.read_text().splitlines() if line.startswith("error:")]
        print(f"{run.name}: {said[-1] if said else 'failed'} (see {log})", file=sys.stderr)
    return not failed


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m tests.benchmarks.ablation", description="Train and compare variants.")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated, default 0,1,2")
    parser.add_argument("--only", default=",".join(VARIANTS), help=f"comma-separated, of {', '.join(VARIANTS)}")
    parser.add_argument("--steps", type=int, help="instead of the configuration's")
    parser.add_argument("--root", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    seeds, names = _seeds(options.seeds), _names(options.only)
    failed = 0
    if not options.table:
        signal.signal(signal.SIGTERM, _interrupt)
        for seed in seeds:  # seed by seed: an early look compares all variants
            for name in names:
                run = folder(options.root, name, seed)
                if read(run):
                    print(f"{run.name}: finished")
                    continue
                print(f"{run.name}: {'goes on' if metrics(run) else 'begins'}", flush=True)
                failed += not train(options.root, name, seed, options.steps)
    table = rows(options.root, names, seeds)
    if not table:
        raise RunError(f"no run of {', '.join(names)} is finished in {options.root}")
    print(markdown(table))
    print(json.dumps({row.name: {k: v for k, v in vars(row).items() if k != "name"} for row in table}))
    if options.plot:
        plot(table, options.plot)
    if failed:
        raise RunError(f"{failed} runs failed: give the command again to go on with them")


def _scores(lines: list[dict[str, Any]], experts: list[str], config: Config) -> float:
    """Mean weighted sum of raw scores; an expert that does not apply to a sample adds 0, as in training."""
    return float(
        np.mean(
            [
                sum(
                    config.experts[name].weight
                    * line.get(f"expert/{name}/applies", 0)
                    * (line.get(f"expert/{name}/mean") or 0)
                    for name in experts
                )
                for line in lines
            ]
        )
    )


def _base(guidance: float, line: dict[str, float]) -> Row:
    name = "base" if guidance == 1 else f"base, guidance {guidance:g}"
    accuracy = line["heldout/accuracy"], line["heldout/accuracy_stderr"]
    kinds = {kind: (value, None) for kind, value in _by_kind(line).items()}
    return Row(name, 0, accuracy, (line["heldout/accuracy_greedy"], None), kinds=kinds)


def _row(name: str, runs: list[Figures]) -> Row:
    shares = []
    for key in ("heldout/accuracy", "heldout/accuracy_greedy"):
        after = np.array([run.after[key] for run in runs])
        shares += [_mean(after), _mean(after - [run.before[key] for run in runs])]
    accuracy, change, greedy, change_greedy = shares
    rewarded, others = (tuple(np.mean([getattr(run, f) for run in runs], 0).tolist()) for f in ("rewarded", "others"))
    found = [_by_kind(run.after) for run in runs]
    kinds = {kind: _mean(np.array([each[kind] for each in found])) for kind in found[0]}
    return Row(name, len(runs), accuracy, greedy, change, change_greedy, rewarded, others, kinds)


def _by_kind(line: dict[str, float]) -> dict[str, float]:
    """Accuracy at T = 1 on each of KINDS; task types are equally many among the held-out prompts."""
    return {kind: float(np.mean([line[f"heldout/task/{task}"] for task in tasks])) for kind, tasks in KINDS.items()}


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error


def _percent(share: tuple[float, float | None] | None, signed: bool = False) -> str:
    if share is None:
        return ""
    mean, error = share
    return f"{100 * mean:{'+' if signed else ''}.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _arrow(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.2f} -> {ends[1]:.2f}" if ends and any(ends) else ""


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: give whole numbers with commas between them") from None


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise UserError(f"--only {unknown[0]}: no variant of {', '.join(VARIANTS)}")
    return names


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
