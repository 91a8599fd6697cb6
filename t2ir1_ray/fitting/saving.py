"""How long a checkpoint takes: its size over what this machine writes, flushes and hashes in a second."""

import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from t2ir1_ray.config import Config
from t2ir1_ray.fitting.capacity import Check
from t2ir1_ray.fitting.inventory import GB
from t2ir1_ray.fitting.memory import Shapes, amount, checkpoint_bytes
from t2ir1_ray.storage.sealing import sealed

PROBE_BYTES = 128 << 20
WAIT = "RAY_JOB_STOP_WAIT_TIME_S"


def saving(config: Config, shapes: Shapes) -> Iterator[Check]:
    """What a checkpoint takes at journal.root, and what a job must be given when it is asked to stop."""
    root = Path(config.journal.root).expanduser().absolute()
    there = next((parent for parent in (root, *root.parents) if os.path.isdir(parent)), root)
    if not os.access(there, os.W_OK):
        return  # which `storage` says
    size = checkpoint_bytes(config, shapes) / GB
    rate = measured_rate(there)
    seconds = size / rate
    text = f"one checkpoint takes {amount(size)}, about {seconds:.0f} s to write at {rate:.2g} GB/s (an estimate, "
    yield Check("ok", f"{text}from a file on {there}): give jobs {WAIT}={stop_wait_s(seconds)}")
    limit = config.cluster.call_timeout_s
    if 2 * seconds > limit:
        text = f"cluster.call_timeout_s={limit:g}: a checkpoint may take longer, and the run would end: set it to"
        yield Check("warn", f"{text} {stop_wait_s(seconds)}, or use a faster disk")


def stop_wait_s(seconds: float) -> int:
    """Whole minutes for a save that takes so long by estimate: the disk may be half as fast, and an update that is
    under way ends first, for which a minute is left."""
    return 60 * math.ceil((60 + 2 * seconds) / 60)


def measured_rate(folder: Path) -> float:
    """GB/s of a file that is written, flushed to the disk and hashed as those of a checkpoint are, by one process."""
    part = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial") as file:
        begin = time.perf_counter()
        for _ in range(PROBE_BYTES >> 20):
            file.write(part)
        file.flush()
        sealed(Path(file.name))
        return PROBE_BYTES / GB / (time.perf_counter() - begin)
