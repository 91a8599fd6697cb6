"""Starting a process that imports large libraries and takes a device."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
    """cuda or cpu, whichever this process was given.

    On a GPU without cuDNN's attention, which plans anew for every shape, and here nearly every shape is new: on an H200
    0.3 to 3.4 s for each against 0.15 s of the flash kernel (tests/gpu/learner.py).
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.backends.cuda.enable_cudnn_sdp(False)
    return "cuda"
