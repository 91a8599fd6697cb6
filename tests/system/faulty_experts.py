"""The shipped HPS expert with built-in accidents: `kind: tests.system.faulty_experts.FaultyHps`."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.base import ExpertScores, Images, Row
from rewards.hps import HpsExpert


class FaultyHps(HpsExpert):
    """accidents: of its first calls, one after another: `raise`, `kill`, `corrupt`, `nan`, `hang`, `place` (scores that
    know the place in the batch and not the image), or `none`.

    Calls are counted by the bytes of the file `calls`, so that a process that starts again goes on with the next one.
    """

    def __init__(self, path: str, accidents: Sequence[str], calls: str, **options: Any):
        super().__init__(path, **options)
        self.accidents, self.calls = accidents, Path(calls)
        self.turn = threading.Lock()

    def score(self, images: Images, rows: Sequence[Row]) -> ExpertScores:
        with self.turn:  # what a call does to others is not left to chance
            accident = self._next()
            if accident != "hang":
                return self._score(accident, images, rows)
        time.sleep(3600)
        raise AssertionError

    def _score(self, accident: str, images: Images, rows: Sequence[Row]) -> ExpertScores:
        if accident == "raise":
            raise RuntimeError("device-side accident")
        if accident == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if accident == "corrupt":
            images = [*images[:3], b"no image at all", *images[4:]]
        found = super().score(images, rows)
        if accident == "nan":
            found.scores[0] = np.nan
        if accident == "place":
            found.scores[:] = np.linspace(0, 1, len(rows))
        return found

    def _next(self) -> str:
        with self.calls.open("ab") as file:
            number = file.tell()
            file.write(b".")
        return self.accidents[number] if number < len(self.accidents) else "none"
