"""Starting a process that imports large libraries and takes a device."""

import atexit
import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from t2ir1_ray.errors import UserError

DETERMINISTIC = "T2IR1_DETERMINISTIC"
"""Environment variable of an actor under `train.deterministic`: `error` or `warn`, what torch does about an operation
that has no deterministic form on this device."""
UNHIDDEN = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Environment variable that keeps Ray from hiding a node's other GPUs from an actor: all would take the first."""


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside; what was made there is never looked through again.

    Importing torch, transformers, vLLM or DeepSpeed makes millions of objects that stay. Looking for garbage among them
    takes a fifth of a start, and later half a second whenever a library asks for it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # else extension modules say at the end that they leak


def take_device() -> str:
    """cuda or cpu, whichever this process was given, and torch's switches for it.

    On a GPU without cuDNN's attention, which plans anew for every shape, and here nearly every shape is new: on an H200
    0.3 to 3.4 s for each against 0.15 s of the flash kernel (tests/gpu/learner.py).
    Raises UserError in an actor that sees other GPUs than its own.
    """
    import torch

    _check_visible(torch.cuda.device_count())
    wanted = os.environ.get(DETERMINISTIC)
    if wanted:
        torch.use_deterministic_algorithms(True, warn_only=wanted == "warn")
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and finds bugs of another kind
    if not torch.cuda.is_available():
        return "cpu"
    torch.backends.cuda.enable_cudnn_sdp(False)
    return "cuda"


def gpus_unhidden() -> bool:
    """Whether `UNHIDDEN` is set in this process."""
    return os.environ.get(UNHIDDEN, "0") not in ("0", "")


def peak_gb(_: object = None) -> float:
    """GB that this process has held at most: of its GPU as torch reserved it, without one of the host's memory."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _check_visible(seen: int) -> None:
    """Ray hides all GPUs of a node but an actor's own, unless it was told not to."""
    ray = sys.modules.get("ray")
    if not ray or not ray.is_initialized() or not ray.get_runtime_context().get_actor_id():
        return  # no actor: whoever started this process says what it sees
    context = ray.get_runtime_context()
    given = len(context.get_accelerator_ids().get("GPU", ()))
    if seen == given:
        return
    name = context.get_actor_name()
    if not seen:
        raise UserError(f"{name}: has {given} GPU and torch sees none: run python -m t2ir1_ray.doctor on its node")
    cause = UNHIDDEN if gpus_unhidden() else "CUDA_VISIBLE_DEVICES"
    raise UserError(
        f"{name}: sees {seen} GPUs instead of its own {given}: unset {cause} where Ray is started on its node, and in "
        "runtime environments"
    )
