"""`python -m deploy.write_examples`: render the two Janus recipes for every target into `deploy/examples/`.

To be run again whenever a recipe, the memory table or a template changes; a test compares.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.render import Request, render
from deploy.targets import TARGETS
from t2ir1_ray import config as configuration
from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.storage import write_whole

FOLDER = Path(__file__).parent / "examples"
RECIPES = ("janus_pro_1b", "janus_pro_7b")


def examples() -> dict[str, str]:
    """Text of every file by its path below `deploy/examples/`."""
    files = {}
    for recipe in RECIPES:
        request = Request(configuration.load(recipe), recipe, None)
        for target in TARGETS:
            for name, text in render(request, target)[0].items():
                files[f"{recipe}/{target}/{name}"] = text
    return files


def main(arguments: Sequence[str]) -> None:
    Parser(prog="python -m deploy.write_examples", description="Render deploy/examples/ anew.").parse_args(arguments)
    files = examples()
    for old in FOLDER.rglob("*"):
        if old.is_file() and str(old.relative_to(FOLDER)) not in files:
            old.unlink()
    for name, text in files.items():
        write_whole(FOLDER / name, text)
    print(f"wrote {len(files)} files into {FOLDER}")


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
