"""Text files that a person names on the command line."""

from pathlib import Path

from t2ir1_ray.errors import UserError

MAX_BYTES = 64 << 20
"""The largest published prompt files have a few megabytes."""


def read_text(path: Path, option: str) -> str:
    """Raises UserError that names `option` if it is no ordinary file (a device has no end), too long or not UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{option}: {path} is no file")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{option}: {path} is longer than {MAX_BYTES >> 20} MiB: not a file of prompts")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{option}: {path} is not UTF-8 text ({error})") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{option}: {str(path)[:200]!r} cannot be read ({reason})") from None


def read_lines(path: Path, option: str) -> list[str]:
    """Lines of any line ending, stripped, without empty ones."""
    return [line.strip() for line in read_text(path, option).splitlines() if line.strip()]
