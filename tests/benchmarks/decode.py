"""`python -m tests.benchmarks.decode [--rounds N] [--out FILE]`: our image decoding beside an official-style loop.

8 images of 576 tokens with guidance by a random Janus of 256 x 8 layers, float32, on the CPU, ragged prompts. Both must
draw the same greedy tokens, or nothing is timed. They run in turns, so that a noisy machine disturbs both; what counts
is processor time, and wall time stands beside it. One thread: where other work takes a core away, two wait for each
other at every one of many small operations, and nothing else is measured. One JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from actors.image_decoder import ImageDecoder
from t2ir1_ray.janus.policy import unconditional_ids
from tests.gpu.decode import official_loop
from tests.gpu.models import Size, random_janus, random_prompts
from tests.torch_trunk import TorchTrunk

SIZE = Size(hidden=256, layers=8, intermediate=704)
IMAGES, TOKENS, PROMPT, RAGGED = 8, 576, 90, 45
GUIDANCE, PAD = 5.0, 2
TARGET = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="the median is printed")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of an image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the object to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = json.dumps(measure(options.rounds, options.tokens), indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(rounds: int, tokens: int) -> dict[str, object]:
    janus = random_janus(SIZE, torch.float32, scale=3.0)
    prompts = random_prompts(IMAGES, PROMPT, RAGGED, janus.lm_head.out_features)
    free = [unconditional_ids(prompt, PAD) for prompt in prompts]
    decoder = ImageDecoder(TorchTrunk(janus), PAD, tokens)
    ways: dict[str, Callable[[float], torch.Tensor]] = {
        "ours": lambda temperature: decoder.generate(prompts, free, range(IMAGES), GUIDANCE, temperature).ids,
        "official": lambda temperature: official_loop(janus, prompts, free, tokens, GUIDANCE, greedy=not temperature),
    }
    greedy = [way(0.0) for way in ways.values()]
    if not torch.equal(*greedy):
        raise SystemExit("the two do not draw the same greedy tokens: nothing to compare")
    taken = [{name: _seconds(partial(way, 1.0)) for name, way in ways.items()} for _ in range(rounds)]
    found: dict[str, object] = {
        "images": IMAGES,
        "tokens": tokens,
        "hidden": SIZE.hidden,
        "layers": SIZE.layers,
        "threads": torch.get_num_threads(),
        "equal_greedy_tokens": int(greedy[0].numel()),
    }
    for unit, at in (("processor", 0), ("wall", 1)):
        medians = {name: statistics.median(each[name][at] for each in taken) for name in ways}
        found |= {f"{name}_{unit}_s": round(value, 2) for name, value in medians.items()}
        found[f"times_faster_{unit}"] = round(medians["official"] / medians["ours"], 2)
    return found | {"target": TARGET}


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    begin = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - begin[0], time.perf_counter() - begin[1]


if __name__ == "__main__":
    main()
