"""`python -m t2ir1_ray.train [--config NAME|PATH] [section.key=value ...]`: train a policy on a Ray cluster."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from actors.startup import uncollected
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.errors import RunError, UserError
from t2ir1_ray.journal.resume import check_unchanged
from t2ir1_ray.records.filenames import file_name


def main(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m t2ir1_ray.train", description="Train a policy with BiCoT-GRPO.")
    parser.add_argument("--config", help="a shipped name (shapes, the default, janus_pro_1b, ...) or a YAML file")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run of this folder")
    parser.add_argument(
        "--force",
        action="store_true",
        help="resume although settings or prompts have changed that its figures depend on",
    )
    parser.add_argument("--profile", action="store_true", help="write RUN/trace.json for chrome://tracing")
    parser.add_argument(
        "--rehearse", action="store_true", help="three steps without checkpoints: random weights of the real sizes"
    )
    parser.add_argument("--rehearse-scale", type=float, metavar="SHARE", help="of every size of the models, e.g. 0.05")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="e.g. train.steps=3 train.seed=1")
    options = parser.parse_args(arguments)
    profile = ["journal.profile=true"] if options.profile else []
    config, run = configured(options.config, options.overrides + profile, options.resume, options.force)
    if fault := configuration.in_submitted_copy(run):
        key = "--resume" if options.resume else "journal.root"
        raise UserError(f"{key}={options.resume or config.journal.root}: {fault}")
    if options.rehearse or options.rehearse_scale is not None:
        rehearse(config, 1.0 if options.rehearse_scale is None else options.rehearse_scale, options.resume)
    else:
        run_training(config, run, resume=options.resume is not None)


def run_training(config: Config, run: Path, resume: bool = False) -> None:
    """After the last checks that need no actor."""
    with uncollected():  # after the configuration is known to be good: these imports take seconds
        from actors.connect import joined_address
        from t2ir1_ray.doctor import preflight
        from t2ir1_ray.fitting.limits import check_limits
        from t2ir1_ray.janus.policy import checked_tensors, load_config
        from t2ir1_ray.trainer import train

        joined_address(config.cluster)
        policy = load_config(config.policy.path)
        check_limits(config, policy)
        checked_tensors(config.policy.path, policy)
        for line in preflight(config):
            print(line)
    try:
        train(config, run, resume)
    except RunError as error:
        if "--resume" in str(error) or not any((run / "checkpoints").glob("step_*")):
            raise
        raise RunError(f"{error}: go on with --resume {run}") from None


def rehearse(config: Config, scale: float, resume: Path | None) -> None:
    """Train a few steps with random weights, say what they took, and leave nothing unless journal.name is given."""
    if resume:
        raise UserError("--rehearse: begins a run of its own: leave --resume out")
    if not 0 < scale <= 1:
        raise UserError(f"--rehearse-scale: {scale}: must be greater than 0 and at most 1")
    with uncollected():
        from t2ir1_ray.rehearsal.prepare import rehearsal
        from t2ir1_ray.rehearsal.report import report

    with rehearsal(config, scale) as (rehearsed, run):
        run_training(rehearsed, run)
        print(report(rehearsed, run))


def configured(name: str | None, overrides: Sequence[str], resume: Path | None, force: bool) -> tuple[Config, Path]:
    """The configuration and the run folder. Raises UserError if a resumed run is not the one that was begun."""
    if resume is None:
        config = configuration.load(name or "shapes", overrides)
        default = file_name(Path(name or "shapes").stem, time.strftime("-%Y%m%d-%H%M%S"))
        return config, Path(config.journal.root) / (config.journal.name or default)
    stored = resume / configuration.FILE
    if not stored.is_file():
        why = configuration.in_submitted_copy(resume) or f"is no run folder: it lacks {configuration.FILE}"
        raise UserError(f"--resume: {resume} {why}")
    config = configuration.load(name or str(stored), overrides)
    check_unchanged(resume, configuration.load(str(stored)), config, force)
    return config, resume


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
