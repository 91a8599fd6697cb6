"""Kinds of x86 processors, pretended as far as torch and vLLM let them be: each process believes that it has less.

ATEN_CPU_CAPABILITY chooses torch's kernels, ONEDNN_MAX_CPU_ISA those of its matrix library. vLLM asks torch.cpu which
of its builds to load; those answers are replaced, for torch reads them from the processor itself.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]


class Kind(NamedTuple):
    build: str  # of vLLM's kernels
    environment: dict[str, str]
    denied: tuple[str, ...]  # functions of torch.cpu that answer no


_ALL = {
    "avx2": Kind(
        "_C_AVX2.abi3.so",
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"),
    ),
    "avx512": Kind(
        "_C_AVX512.abi3.so",
        {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
    ),
    "native": Kind("_C.abi3.so", {}, ()),
}
BUILDS = [kind.build for kind in _ALL.values()]
_HAS = {"avx2": True, "avx512": torch.cpu._is_avx512_supported(), "native": torch.cpu._is_avx512_bf16_supported()}
CPU_KINDS = {name: kind for name, kind in _ALL.items() if _HAS[name]}
"""Those that this processor can stand for."""


def pretend(kind: str, code: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that takes its processor for one of that kind."""
    _, environment, denied = CPU_KINDS[kind]
    lies = [f"torch.cpu.{name} = lambda: False" for name in denied]
    program = "\n".join(["import torch", *lies, code])
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
