"""`python -m t2ir1_ray.report RUN [RUN2] [--out FILE]`: one HTML page about a run, or about two beside each other.

`--follow` serves the page of a run on this machine instead, and adds what the run does as it comes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.errors import UserError
from t2ir1_ray.report_page import Follower, build_page, read_run, serve
from t2ir1_ray.storage import write_whole


def main(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="python -m t2ir1_ray.report",
        description="Write one self-contained HTML page: curves, and every group with its plans, images and scores.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, e.g. runs/seed0")
    parser.add_argument("run2", type=Path, metavar="RUN2", nargs="?", help="a second one to lay beside it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    parser.add_argument(
        "--max-mb",
        type=float,
        default=64.0,
        help="size of the page; steps beyond it are left out evenly, with --follow the oldest ones (default: 64)",
    )
    parser.add_argument("--follow", action="store_true", help="serve the page here and add steps as they come")
    parser.add_argument("--port", type=int, metavar="N", help="where --follow serves (default: a free port)")
    options = parser.parse_args(arguments)
    if options.follow:
        if options.run2 or options.out:
            raise UserError("--follow: takes one RUN and writes no file: leave out RUN2 and --out")
        serve(Follower(options.run, options.max_mb), options.port or 0, partial(print, flush=True))
        return
    if options.port is not None:
        raise UserError("--port: is for --follow")
    out = options.out or options.run / "report.html"
    runs = [read_run(folder) for folder in (options.run, options.run2) if folder]
    page = build_page(runs, options.max_mb)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("ab").close()
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror}): choose another file") from None
    write_whole(out, page.html)
    print(f"{out}: {page.summary}")
    for note in page.notes:
        print(f"  {note}")


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
