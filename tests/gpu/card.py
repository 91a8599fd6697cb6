"""Which card, which software, and the rates against which everything else is judged."""

import os
from collections.abc import Iterator

import torch
import transformers

from tests.gpu.measure import CUDA, card


def figures(tiny: bool) -> Iterator[dict[str, object]]:
    yield {
        "card": torch.cuda.get_device_name() if CUDA else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "cpus": os.cpu_count(),
    }
    rates = card()
    yield {"copy_GB_per_s": round(rates.copy_gb_per_s, 1), "bf16_matmul_TFLOP_per_s": round(rates.tflop_per_s, 1)}
