"""Hostile input by the hundred thousand: `python -m tests.fuzz [--inputs N] [--seed S] [--only prompts,config,...]`.

Every input is a small folder of files, made by breaking a valid one: bytes are flipped, cut and repeated, values of
JSON, YAML and safetensors headers replaced by absurd ones. Input number i of a target depends on the seed and i only.
It must be accepted, or refused with a UserError of one line; anything else (another exception, a dead or hanging
process, a secret of the environment in what was read) is a crash: saved under --keep, exit code 1.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from t2ir1_ray.errors import UserError
from tests.fuzz_breaking import Case
from tests.fuzz_targets import TARGETS

LINE_LIMIT = 2000
"""Characters of an error line: one that quotes a whole file is no help."""
TIME_LIMIT_S = 5.0
MEMORY_LIMIT = 12 << 30


class Hang(BaseException):
    """An input took longer than the time limit."""


@dataclass
class Totals:
    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused


def main() -> int:
    options = _parser().parse_args()
    print(f"{'target':<12}{'inputs':>9}{'accepted':>10}{'refused':>9}{'crashes':>9}{'inputs/s':>10}{'slowest':>9}")
    crashed = False
    for name in options.only.split(","):
        first, last = options.first, options.first + options.inputs
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            target = TARGETS[name](Path(scratch))
            totals, crashes = fuzz(name, target, range(first, last), options.seed, options.keep)
        rate = options.inputs / max(totals.seconds, 1e-9)
        count = sum(crashes.values())
        print(
            f"{name:<12}{options.inputs:>9}{totals.accepted:>10}{totals.refused:>9}{count:>9}{rate:>10.0f}"
            f"{totals.slowest_s:>8.2f}s",
            flush=True,
        )
        for what, number in crashes.most_common():
            print(f"  {number} x {what}")
        crashed |= bool(crashes)
    return int(crashed)


def fuzz(name: str, target: Any, indices: range, seed: int, keep: Path) -> tuple[Totals, Counter[str]]:
    """Run the inputs in a child process; one that dies or hangs is replaced, and goes on behind its last input."""
    totals, crashes, begin = Totals(), Counter[str](), time.perf_counter()
    context = multiprocessing.get_context("fork")
    while indices:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(target, name, indices, seed, sender), daemon=True)
        child.start()
        sender.close()
        done = indices.start
        try:
            while done < indices.stop and receiver.poll(10 * TIME_LIMIT_S):
                done, what, seconds = receiver.recv()
                totals.slowest_s = max(totals.slowest_s, seconds)
                if what in ("accepted", "refused"):
                    setattr(totals, what, getattr(totals, what) + 1)
                else:
                    _save(keep, name, target, seed, done - 1, what, crashes)
            hung = done < indices.stop
        except EOFError:
            hung = False
        if child.is_alive() and done < indices.stop:
            child.kill()
        child.join()
        if done < indices.stop:
            what = "hang outside Python" if hung else f"process died, exit code {child.exitcode}"
            _save(keep, name, target, seed, done, what, crashes)
            done += 1
        indices = range(done, indices.stop)
    totals.seconds = time.perf_counter() - begin
    return totals, crashes


def _work(target: Any, name: str, indices: range, seed: int, results: Connection) -> None:
    """The child: (index behind the input, outcome, seconds) for every input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # nobody answers a question, and libraries may warn as they like
        os.dup2(nothing, stream)
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for index in indices:
            folder = Path(scratch) / "input"
            _write(target.make(_random(name, seed, index)), folder)
            begin = time.perf_counter()
            what = outcome(lambda folder=folder: target.run(folder))
            results.send((index + 1, what, time.perf_counter() - begin))
            shutil.rmtree(folder)


def outcome(run: Callable[[], None]) -> str:
    """ "accepted", "refused", or a line that says how it crashed and where."""
    try:
        with _time_limit(TIME_LIMIT_S):
            run()
    except UserError as error:
        line = str(error)
        if "\n" in line or len(line) > LINE_LIMIT or not line:
            return f"UserError that is not one line of at most {LINE_LIMIT} characters: {line[:100]!r}"
        return "refused"
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        place = next((f for f in reversed(frames) if not Path(f.filename).name.startswith("fuzz")), frames[-1])
        return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:100]!r}"
    return "accepted"


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hang(*_: object) -> None:
    raise Hang(f"longer than {TIME_LIMIT_S} s")


def _random(name: str, seed: int, index: int) -> random.Random:
    return random.Random(f"{name} {seed} {index}")


def _write(case: Case, folder: Path) -> None:
    folder.mkdir()
    for name, content in case.items():
        if isinstance(content, Path):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)


def _save(keep: Path, name: str, target: Any, seed: int, index: int, what: str, crashes: Counter[str]) -> None:
    """Keep the first inputs of every kind of crash; `--first INDEX --inputs 1` makes each of them again."""
    crashes[what.split(": ")[0]] += 1
    folder = keep / f"{name}-{seed}-{index}"
    if crashes[what.split(": ")[0]] > 5 or folder.exists():
        return
    keep.mkdir(parents=True, exist_ok=True)
    _write(target.make(_random(name, seed, index)), folder)
    (folder / "crash.json").write_text(json.dumps({"target": name, "seed": seed, "index": index, "what": what}) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=1000, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(TARGETS), help="targets, separated by commas")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path(tempfile.gettempdir()) / "fuzz-crashes",
        metavar="DIR",
        help="where crashes are saved",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
