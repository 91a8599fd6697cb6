"""What a CPU-only torch needs beside packages that PyPI builds for CUDA only.

torchvision registers Python kernels for operators that its C++ library defines; beside a CPU torch that library does
not load and `import torchvision` fails. `register` declares the missing schemas. It is an entry point of the group
`torch.backends`, so `import torch` calls it in every process: driver, Ray workers, vLLM's engine.
torchaudio and torchcodec cannot be mended that way, and nothing here decodes audio or video: `prune` removes them.
"""

import importlib.metadata
import subprocess
import sys

_library = None  # the schemas live as long as this object


def register() -> None:
    """Declare torchvision's missing operator schemas on a CPU-only torch; do nothing elsewhere or when called again."""
    global _library
    import torch

    if torch.version.cuda is not None or _library is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    _library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):
        _library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def prune() -> None:
    """Uninstall torchaudio and torchcodec where they are CUDA builds beside a CPU torch (the Makefile calls this)."""
    import torch

    if torch.version.cuda is not None:
        return
    installed = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    broken = sorted(installed & {"torchaudio", "torchcodec"})
    if broken:
        print(f"removing {', '.join(broken)}: built for CUDA, unusable beside a CPU torch, not needed here")
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", *broken], check=True)


if __name__ == "__main__":
    prune()
