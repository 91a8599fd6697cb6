"""The loop of every expert: images are made ready beside the model's work, and one bad image hurts no other."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from rewards.base import ExpertScores, Images, Row, not_finite, read_image

S, T = TypeVar("S"), TypeVar("T")


class BatchedExpert(ABC):
    """An expert whose model takes a batch of prepared images.

    `score` may be called on several threads: while one call has the model, another one prepares its images. Inside a
    call the next batch is prepared meanwhile.
    """

    name: str
    value_range: tuple[float, float]

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._model_is_free = threading.Lock()

    def applies_to(self, row: Row) -> bool:
        """Whether the expert has an opinion on this prompt."""
        return True

    @abstractmethod
    def prepare(self, image: np.ndarray) -> Any:
        """What the model needs of an (H, W, 3) uint8 image. It is called beside `score_batch`, on another thread."""

    @abstractmethod
    def score_batch(self, prepared: list[Any], rows: list[Row]) -> np.ndarray:
        """One float for each of at most `batch_size` samples."""

    def score(self, images: Images, rows: Sequence[Row]) -> ExpertScores:
        """Run the samples that apply and can be read through the model; mark the others "na" or "failed".

        Raises ValueError if images and rows differ in number, NonFiniteScore if a score is NaN or infinite.
        """
        if len(images) != len(rows):
            raise ValueError(f"{self.name}: {len(images)} images for {len(rows)} prompts")
        scores = np.full(len(rows), np.nan, np.float32)
        status: list[str] = ["na"] * len(rows)
        errors: list[str | None] = [None] * len(rows)

        def prepare(samples: list[int]) -> dict[int, Any]:
            prepared = {}
            for index in samples:
                try:
                    image = read_image(images[index])
                except ValueError as error:
                    status[index], errors[index] = "failed", str(error)
                else:
                    prepared[index] = self.prepare(image)
            return prepared

        applies = [index for index, row in enumerate(rows) if self.applies_to(row)]
        batches = [applies[start : start + self.batch_size] for start in range(0, len(applies), self.batch_size)]
        for prepared in _one_ahead(prepare, batches):
            if not prepared:
                continue
            batch = list(prepared)
            with self._model_is_free:
                values = self.score_batch(list(prepared.values()), [rows[index] for index in batch])
            scores[batch] = values
            for index in batch:
                status[index] = "ok"
                if not np.isfinite(scores[index]):
                    raise not_finite(self.name, index, rows)
        return ExpertScores(scores, status, errors)


def _one_ahead(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`map`, but the next result is made on a thread while the reader works with this one."""
    with ThreadPoolExecutor(1) as thread:
        upcoming: Future[T] | None = None
        for item in items:
            made, upcoming = upcoming, thread.submit(function, item)
            if made:
                yield made.result()
        if upcoming:
            yield upcoming.result()
