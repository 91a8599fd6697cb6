"""`python -m t2ir1_ray.fitting.libraries NAME`: does a compiled library load beside this torch, on this processor?

Each is tried in a process of its own. One that kills its interpreter, by operators that another build has registered
or by an instruction that the processor lacks, is then a finding and not the end of whoever asked.
"""

import importlib
import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

NAMES = ("torchvision", "deepspeed", "vllm")
TIMEOUT_S = 180
LOADED = "loaded: "


def try_to_load(name: str) -> tuple[bool, str] | None:
    """(whether it loads, what was loaded or why not, in one line); None: it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    command = [sys.executable, "-m", "t2ir1_ray.fitting.libraries", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False, f"no end within {TIMEOUT_S} s"
    if done.returncode:
        return False, _cause(done.returncode, [line.strip() for line in done.stderr.splitlines() if line.strip()])
    return True, done.stdout.rpartition(LOADED)[2].strip()  # behind what the library itself has printed


def _cause(returncode: int, errors: list[str]) -> str:
    """Why it did not load: an exception is the last line, a killed interpreter says it before a dump of its threads."""
    if returncode > 0:
        return errors[-1] if errors else f"exit code {returncode}"
    marks = ("what():", "Fatal Python error", "terminate called")
    said = [line for mark in marks for line in errors if line.startswith(mark)]
    return ": ".join([f"killed by {signal.Signals(-returncode).name}", *said[:1]])[:300]


def load(name: str) -> str:
    """Import a library and run something compiled of it; returns the file that was loaded, if that is in question."""
    importlib.import_module(name)
    return load_kernels() if name == "vllm" else ""


def load_kernels() -> str:
    """vLLM's kernels: it has several builds, and only its platform knows which one fits this processor or GPU."""
    import torch
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    gate_and_value = torch.ones(1, 32, dtype=torch.bfloat16, device=current_platform.device_type)
    product = torch.empty(1, 16, dtype=torch.bfloat16, device=current_platform.device_type)
    torch.ops._C.silu_and_mul(product, gate_and_value)
    if abs(product.float().mean().item() - 0.731) > 0.01:  # SiLU(1)
        raise RuntimeError(f"its kernel for SiLU gives {product.float().mean().item():.3f} for 1")
    maps = Path("/proc/self/maps").read_text().split()
    return ", ".join(sorted({Path(word).name for word in maps if "/vllm/_C" in word}))


if __name__ == "__main__":
    print(LOADED + load(sys.argv[1]))
