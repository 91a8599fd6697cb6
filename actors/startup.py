"""Starting a process that imports large libraries."""

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
