"""What a run leaves behind: `runs/<name>/` with config.yaml, metrics.jsonl, tensorboard/, rollouts/, checkpoints/."""

import io
import json
import math
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter

from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.errors import UserError
from t2ir1_ray.experience import Experience
from t2ir1_ray.progress import Progress
from t2ir1_ray.schema import dump_table


class Stopwatch:
    """Wall-clock seconds of the named phases of one step."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._phases[phase] = time.perf_counter() - begin

    def __getitem__(self, phase: str) -> float:
        return self._phases[phase]

    def seconds(self) -> dict[str, float]:
        """`time/<phase>_s` of every phase so far, and `time/step_s` since the start."""
        phases = {f"time/{phase}_s": seconds for phase, seconds in self._phases.items()}
        return {**phases, "time/step_s": time.perf_counter() - self._start}


class Journal:
    """The run folder. Metrics are flushed line by line, so that a killed run has lost nothing it reported."""

    def __init__(self, run: Path, config: Config):
        """Raises UserError if the folder holds another run or cannot be written."""
        self.run = run
        self.config = config
        try:
            run.mkdir(parents=True, exist_ok=True)
            metrics = run / "metrics.jsonl"
            if metrics.exists() and metrics.stat().st_size:
                raise UserError(f"journal.name: {run} holds a run already: choose another name or remove the folder")
            configuration.save(config, run / "config.yaml")
            self._metrics = metrics.open("w")
            for folder in ("tensorboard", "rollouts", "checkpoints"):
                (run / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"journal.root: {run} cannot be written ({error.strerror}): choose another folder"
            ) from None
        self._board = SummaryWriter(str(run / "tensorboard"))
        self._progress = Progress(config.train.steps, run)

    def write(self, metrics: dict[str, Any], experience: Experience | None = None) -> None:
        """One step's metrics to every reader, and its samples when they are due."""
        bad = [key for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
        record = {key: None if key in bad else value for key, value in metrics.items()}
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        step = metrics["step"]
        for key, value in metrics.items():
            if key != "step":
                self._board.add_scalar(key, value, step)
        if experience:
            if self.config.journal.dump_every and step % self.config.journal.dump_every == 0:
                self._dump(step, experience)
            if self.config.journal.images_every and step % self.config.journal.images_every in (0, 1):
                self._board.add_image("samples", image_grid(experience), step, dataformats="HWC")
        self._progress.show(metrics)

    def save_checkpoint(self, step: int, export: Callable[[str], None]) -> Path:
        """`checkpoints/step_<step>/`, written aside and renamed: whole or absent."""
        final = (self.run / "checkpoints" / f"step_{step:06d}").resolve()
        staging = final.with_name(f".{final.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        export(str(staging))
        for file in staging.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        staging.rename(final)
        self._progress.say(f"checkpoint {final}")
        return final

    def _dump(self, step: int, experience: Experience) -> None:
        table = dump_table(
            experience.rollouts,
            experience.prompts,
            experience.task_types,
            [_png(pixels) for pixels in experience.rollouts.pixels],
            {name: scores.scores for name, scores in experience.scores.items()},
            experience.rewards,
            experience.advantages,
        )
        pq.write_table(table, self.run / "rollouts" / f"step_{step:06d}.parquet", compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._board.close()
        self._progress.close()


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
            image = Image.fromarray(experience.rollouts.pixels[sample]).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(image, (x * (tile + 6), top + header))
            caption = f"{experience.rewards[sample]:.2f} " + experience.rollouts.plan[sample]
            draw.text((x * (tile + 6), top + header + tile + 1), _wrap(caption, 20, 5), fill="black", spacing=1)
    return np.asarray(sheet)


def _wrap(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(text, width)[:lines])


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
