"""What a run leaves behind: `runs/<name>/` with config.yaml, metrics.jsonl, tensorboard/, rollouts/, checkpoints/."""

import io
import json
import os
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter

from actors.activity import Activity
from learner.meter import RATIO_EDGES, SEGMENTS
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.errors import RunError, UserError, check_finite, reason
from t2ir1_ray.journal.activity_log import ActivityLog
from t2ir1_ray.journal.exported import Exporter
from t2ir1_ray.journal.hacking import HackingIndex
from t2ir1_ray.journal.metric_names import MetricNames
from t2ir1_ray.journal.progress import Progress
from t2ir1_ray.journal.resume import record_inputs
from t2ir1_ray.journal.snapshots import Snapshot, Snapshots
from t2ir1_ray.journal.trackers import Trackers
from t2ir1_ray.journal.warning_signs import WarningSigns
from t2ir1_ray.loop.experience import Experience
from t2ir1_ray.records.schema import dump_table
from t2ir1_ray.storage import OneWriter, disk_failure, whole_file, write_whole
from t2ir1_ray.storage.whole_files import PARTIAL

METRICS = "metrics.jsonl"
GRID = "image_grid"
"""Name of the sample images in the trackers, where they stand among the metrics."""
LEAST_FREE_BYTES = 4 << 20


class Journal:
    """The run folder. Metrics are flushed line by line, so that a killed run has lost nothing it reported."""

    def __init__(self, run: Path, config: Config, resume: bool = False, activity: Activity | None = None):
        """`resume`: the folder's run goes on. activity: what its actors do.

        Raises UserError if the folder holds another run or cannot be written.
        """
        self.run = run
        self._activity = activity or Activity()
        self.config = config
        self.snapshots = Snapshots(run / "checkpoints", config.journal.keep_last)
        self._progress = Progress(config.train.steps, config.eval.every)
        self._writer = OneWriter(run, "--resume" if resume else "journal.root", self.say)
        try:
            metrics = run / METRICS
            if not resume and metrics.exists() and metrics.stat().st_size:
                raise UserError(
                    f"journal.name: {run} holds a run already: go on with --resume {run}, or choose another name"
                )
            with disk_failure(run):
                for folder in ("tensorboard", "rollouts", "checkpoints"):
                    (run / folder).mkdir(exist_ok=True)
                for torn in (*run.glob(PARTIAL), *run.glob(f"rollouts/{PARTIAL}")):
                    torn.unlink()
                metrics.touch()
            configuration.save(config, run / configuration.FILE)
            record_inputs(run, config)
        except BaseException:
            self._writer.release()
            raise
        self._exporter: Exporter | None = None
        self._signs = WarningSigns(config)
        self._hacking = HackingIndex({n: e.weight if e.role == "reward" else 0.0 for n, e in config.experts.items()})
        self._names = MetricNames()
        self._names.check([GRID])
        self.say(f"run folder {run} (tensorboard --logdir {run / 'tensorboard'})")

    def begin_after(self, step: int) -> None:
        """Open the journal behind `step`, 0 for a new run. What the folder holds of later steps is removed."""
        with disk_failure(self.run):
            self.snapshots.forget_after(step)
            for file in (self.run / "rollouts").glob("step_*.parquet"):
                if file.stem > f"step_{step:06d}":
                    file.unlink()
            kept = [line for number, line in self._whole_lines() if number <= step] if step else []
            write_whole(self.run / METRICS, b"".join(kept))
            self._metrics = (self.run / METRICS).open("a")
        for line in map(json.loads, kept):  # what was seen and told so far
            self._hacking.add(line)
            if line["step"]:
                self._signs.look(line)
        self._log = ActivityLog(self.run, self._activity, step, self.config.train.steps)
        settings = OmegaConf.to_container(OmegaConf.structured(self.config))
        self._trackers = Trackers(self.config.journal.trackers, self.run, settings, step, self.say)
        self._board = SummaryWriter(str(self.run / "tensorboard"), purge_step=step + 1 if step else None)
        self._begun_after = step
        self._progress.begin(step)

    def export(self, live: Callable[[], Mapping[str, float]]) -> None:
        """Give figures to Ray's metrics too, from now on: this process is connected. live: see `Exporter`."""
        self._exporter = Exporter(self.run.name, self._begun_after, self.config.train.steps, live)

    def started(self, step: int) -> None:
        """All actors are up, and the run goes on behind `step`."""
        self._log.lanes("started", step)

    def newest_snapshot(self) -> Snapshot | None:
        """The newest whole checkpoint whose step is in the journal: where a run can go on without a gap."""
        written = [step for step, _ in self._whole_lines()]
        return self.snapshots.newest(self.say, at_most=written[-1]) if written else None

    def _whole_lines(self) -> list[tuple[int, bytes]]:
        """(step, line) of the metrics up to the first line that was torn."""
        found = []
        for line in (self.run / METRICS).read_bytes().splitlines(keepends=True):
            try:
                found.append((int(json.loads(line)["step"]), line))
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                found.pop()
        return found

    def add_checkpoint(self, step: int, accuracy: float | None, write: Callable[[Path], Sequence[str]]) -> None:
        """A checkpoint of the step. write: see `Snapshots.create`. What it stands behind is on the disk before it."""
        self._writer.check()
        with disk_failure(self.run):
            os.fsync(self._metrics.fileno())
            folder = self.snapshots.create(step, self.config.learner.ranks, accuracy, write)
        if self._exporter:
            self._exporter.checkpoint(step)
        self._log.event("checkpoint", step=step)
        self.say(f"checkpoint {folder}")

    def say(self, line: str) -> None:
        """A line for the person at the terminal."""
        self._progress.say(line)

    def write(self, metrics: dict[str, Any], experience: Experience | None = None) -> None:
        """One step's metrics to every reader, and its samples when they are due. None: the step has no such figure.

        The hacking index is added to them. Raises RunError if a figure is not finite, the disk fails, or another
        process has taken the folder over; and for a warning sign, when all is written, with train.on_warning=stop.
        """
        self._writer.check()
        metrics = metrics | self._hacking.add(metrics)
        self._names.check(metrics)
        check_finite(metrics, f"step {metrics['step']}")
        if shutil.disk_usage(self.run).free < LEAST_FREE_BYTES:  # TensorBoard's own thread would die with a traceback
            raise RunError(f"journal: {self.run}: No space left on device: free the disk, then --resume")
        signs = self._signs.look(metrics) if experience else []
        try:
            self._write(metrics, experience, signs)
        except OSError as error:
            raise RunError(f"journal: {self.run}: {error.strerror or error}: free the disk, then --resume") from None
        if signs and self.config.train.on_warning == "stop":
            raise RunError(f"step {metrics['step']}: {'; '.join(signs)} (train.on_warning=stop)")

    def _write(self, metrics: dict[str, Any], experience: Experience | None, signs: Sequence[str]) -> None:
        self._metrics.write(json.dumps(metrics) + "\n")
        self._metrics.flush()
        step = metrics["step"]
        for key, value in metrics.items():
            if key != "step" and isinstance(value, int | float):
                self._board.add_scalar(key, value, step)
        self._trackers.log(metrics, step)
        if self._exporter:
            self._exporter.write(metrics)
        if experience:
            for sentence in signs:
                self._log.event("warning", step=step, text=sentence)
                self.say(f"step {step} warning: {sentence}")
                self._board.add_text("warnings", sentence, step)
            self._histograms(metrics, experience, step)
            if self.config.journal.dump_every and step % self.config.journal.dump_every == 0:
                self._dump(step, experience)
            if self.config.journal.images_every and step % self.config.journal.images_every in (0, 1):
                grid = image_grid(experience)
                self._board.add_image("samples", grid, step, dataformats="HWC")
                self._trackers.images(GRID, grid, step)
        self._progress.show(metrics)
        left = {"left_s": round(self._progress.seconds_left(step), 1)} if step else {}  # step 0 is an evaluation
        self._log.lanes("step", step, **left)

    def _histograms(self, metrics: dict[str, Any], experience: Experience, step: int) -> None:
        self._board.add_histogram("advantage", experience.advantages[np.isfinite(experience.advantages)], step)
        self._board.add_histogram("staleness", step - 1 - experience.rollouts.policy_version, step)
        end = 2 * RATIO_EDGES[-1]  # of the two open bins
        for segment in SEGMENTS:
            self._board.add_histogram_raw(
                f"log_ratio/{segment}",
                min=-end,
                max=end,
                num=sum(metrics[f"mismatch/{segment}_histogram"]),
                sum=0.0,
                sum_squares=0.0,
                bucket_limits=[*RATIO_EDGES, end],
                bucket_counts=metrics[f"mismatch/{segment}_histogram"],
                global_step=step,
            )

    def _dump(self, step: int, experience: Experience) -> None:
        table = dump_table(
            experience.rollouts,
            prompts=experience.prompts,
            task_types=experience.task_types,
            images=[_png(pixels) for pixels in experience.images],
            scores={name: scores.scores for name, scores in experience.scores.items()},
            rewards=experience.rewards,
            advantages=experience.advantages,
            semantic_advantages=experience.semantic_advantages,
        )
        with whole_file(self.run / "rollouts" / f"step_{step:06d}.parquet") as file:
            pq.write_table(table, file, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._progress.close()
        if self._exporter:
            self._exporter.close()
        if hasattr(self, "_log"):
            with suppress(RunError):  # a full disk, or another process, which has the folder now
                self._writer.check()
                self._log.lanes("ended", self._log.step, text=_ending(error))
            self._log.close()
        if hasattr(self, "_board"):
            for sink in (self._board, self._trackers, self._metrics):
                with suppress(OSError):  # a full disk has been told already
                    sink.close()
        self._writer.release()


def _ending(error: BaseException | None) -> str:
    """Why a run has ended; nothing if it is finished."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "" if error is None else str(error) if isinstance(error, RunError | UserError) else reason(error)


def image_grid(experience: Experience, groups: int = 4, tile: int = 120, text: int = 60) -> np.ndarray:
    """(height, width, 3) uint8: one row per prompt, its samples side by side with plan and reward beneath."""
    names = list(dict.fromkeys(experience.rollouts.prompt_id))[:groups]
    rows = [[i for i, name in enumerate(experience.rollouts.prompt_id) if name == wanted] for wanted in names]
    header, cell = 16, tile + text
    sheet = Image.new("RGB", (max(map(len, rows)) * (tile + 6), len(rows) * (header + cell)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, samples in enumerate(rows):
        top = y * (header + cell)
        draw.text((2, top + 2), experience.prompts[samples[0]], fill="black")
        for x, sample in enumerate(samples):
            image = Image.fromarray(experience.images[sample]).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(image, (x * (tile + 6), top + header))
            caption = f"{experience.rewards[sample]:.2f} " + experience.rollouts.plan[sample]
            draw.text((x * (tile + 6), top + header + tile + 1), _wrap(caption, 20, 5), fill="black", spacing=1)
    return np.asarray(sheet)


def _wrap(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(text, width)[:lines])


def _png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG, with the least effort: a seventh larger than by default, in a third of the time."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
