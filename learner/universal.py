"""DeepSpeed's universal checkpoint: what one number of ranks wrote, another number reads."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from t2ir1_ray.errors import RunError


@contextmanager
def universal_checkpoint(folder: Path, rank: int) -> Iterator[Path]:
    """A converted copy of DeepSpeed's checkpoint `folder` as long as the block lasts; all ranks enter together.

    Rank 0 converts, beside the checkpoint of the run, where the other ranks see it too. Raises RunError if it cannot.
    """
    converted = folder.parent.with_name(f".{folder.parent.name}.universal")
    failure: list[str | None] = [None]
    if rank == 0:
        shutil.rmtree(converted, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(folder), "--output_folder", str(converted / folder.name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failure = [done.stderr.strip().splitlines()[-1] if done.returncode else None]
    dist.broadcast_object_list(failure)
    if failure[0]:
        raise RunError(f"learner: {folder} could not be converted for another number of ranks: {failure[0]}")
    try:
        yield converted / folder.name
    finally:
        dist.barrier()
        if rank == 0:
            shutil.rmtree(converted)
