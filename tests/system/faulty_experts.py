"""The shipped HPS expert with one built-in accident: `kind: tests.system.faulty_experts.FaultyHps`."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.base import ExpertScores, Images, Row
from rewards.hps import HpsExpert


class FaultyHps(HpsExpert):
    """fault: what happens in the first call that finds no file `marker`.

    `raise_always`, `nan`, `hang` and `kill_always` happen in every call; the last adds a byte to the file each time.
    """

    def __init__(self, path: str, fault: str, marker: str, **options: Any):
        super().__init__(path, **options)
        self.fault, self.marker = fault, Path(marker)

    def score(self, images: Images, rows: Sequence[Row]) -> ExpertScores:
        if self.fault == "raise_always" or (self.fault == "raise" and self._first()):
            raise RuntimeError("device-side accident")
        if self.fault == "kill" and self._first():
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "kill_always":
            with self.marker.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "corrupt" and self._first():
            images = [*images[:3], b"no image at all", *images[4:]]
        found = super().score(images, rows)
        if self.fault == "nan":
            found.scores[0] = np.nan
        return found

    def _first(self) -> bool:
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
