"""How every command of this project ends: exit code 0, or one line on stderr and 2 (bad input) or 1 (failure)."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from t2ir1_ray.errors import RunError, UserError


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments; options may stand between them."""

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def run_entry(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> NoReturn:
    """Run a command's `main` and exit the process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        main(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
