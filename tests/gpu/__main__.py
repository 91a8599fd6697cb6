"""`python -m tests.gpu [--tiny] [--only PART...] [--out FILE.json]`: runs the parts and prints one JSON object.

Every part is a process of its own under a time limit: one that fails or hangs is recorded, and the others still run.
The file is written anew after each part. `--tiny`: small shapes, on any device, to see that the check itself works.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

PARTS = {  # most valuable first, and after how many seconds each is stopped
    "card": 40,
    "decode": 100,
    "variants": 80,
    "learner": 60,
    "versions": 35,
    "mismatch": 30,
    "experts": 90,
    "pixels": 30,
    "deepspeed": 60,
}
ALL_S = 410  # when the last part is stopped


def run_part(command: list[str], limit_s: float) -> dict[str, object]:
    """Run a process that appends figures, one JSON object a line, to the file named by its last argument.

    Returns {seconds, figures, error}; what was found before a failure or the time limit is kept.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        figures, log = Path(folder, "figures.jsonl"), Path(folder, "log.txt")
        begin = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen([*command, str(figures)], stdout=output, stderr=output, env=environment)
            try:
                code = process.wait(limit_s)
                error = log.read_text(errors="replace")[-2000:] or f"exit code {code}" if code else None
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                error = f"not over after {limit_s:g} s"
        lines = figures.read_text().splitlines() if figures.exists() else []
        seconds = round(time.monotonic() - begin, 1)
    return {"seconds": seconds, "error": error, "figures": [json.loads(line) for line in lines]}


def work(part: str, tiny: bool, path: str) -> None:
    """The process of one part."""
    module = import_module(f"tests.gpu.{part}")
    with open(path, "a") as file:
        for found in module.figures(tiny):
            print(json.dumps(found), file=file, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], options.tiny, options.worker[1])
        os._exit(0)  # DeepSpeed's threads may outlive the interpreter and abort it; everything is on the disk
    command = [sys.executable, "-m", "tests.gpu", *(["--tiny"] if options.tiny else []), "--worker"]
    result: dict[str, object] = {"tiny": options.tiny, "parts": {}}
    begin = time.monotonic()
    for part in options.only:
        limit_s = 600 if options.tiny else max(0, min(PARTS[part], begin + ALL_S - time.monotonic()))
        found = result["parts"][part] = run_part([*command, part], limit_s)
        print(f"{part}: {found['seconds']} s, {found['error'] or 'ok'}", file=sys.stderr, flush=True)
        if options.out:
            partial = options.out.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1) + "\n")
            partial.rename(options.out)
    print(json.dumps(result))
    sys.exit(any(found["error"] for found in result["parts"].values()))


if __name__ == "__main__":
    main()
