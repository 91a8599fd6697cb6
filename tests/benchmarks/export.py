"""`python -m tests.benchmarks.export --gb 1 2 [--out FILE.json]`: what the export of a policy takes.

`save_policy` on a random Janus as in `publish`, in a process of its own that holds a trained state in memory, as
learner rank 0 does. Memory is what the process has for itself (RssAnon) beside that state: pages of the checkpoint that
it reads from belong to the system. Prints an object for every size, with the seconds that follow for Janus-Pro-7B.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.publish import GB, write_janus

PRO_7B_GB = 14.8


def own_gb() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024 / GB


def measure(source: str, out: Path) -> dict[str, Any]:
    """Of one export, in this process."""
    from t2ir1_ray.janus.policy import FROZEN, load_state_dict, save_policy

    trained = {name: t.clone() for name, t in load_state_dict(source).items() if not name.startswith(FROZEN)}
    before, peak, done = own_gb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], own_gb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    save_policy(source, trained, out)
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    size = sum(file.stat().st_size for file in out.glob("*.safetensors")) / GB
    more = peak[0] - before
    return {
        "GB": round(size, 3),
        "state_GB": round(sum(tensor.nbytes for tensor in trained.values()) / GB, 3),
        "s": round(seconds, 3),
        "GB_per_s": round(size / seconds, 3),
        "memory_beside_state_GB": round(more, 3),
        "s_of_janus_pro_7b": round(seconds * PRO_7B_GB / size, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, nargs="+", required=True, help="of the language model; at least 1")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)  # the measured process: a folder with `source`
    options = parser.parse_args()
    if options.of:
        print(json.dumps(measure(str(options.of / "source"), options.of / "exported")))
        return
    found = []
    for gb in options.gb:
        with tempfile.TemporaryDirectory() as name:
            write_janus(Path(name) / "source", gb)
            command = [sys.executable, "-m", "tests.benchmarks.export", "--gb", str(gb), "--of", name]
            line = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        found.append(json.loads(line))
    result = json.dumps(found, indent=1)
    print(result)
    if options.out:
        options.out.write_text(result + "\n")


if __name__ == "__main__":
    main()
