"""Sizes of a model of reduced width and depth."""


def times(size: int, scale: float, least: int = 1, multiple: int = 1) -> int:
    """`size` times `scale`, rounded to a multiple; `size` itself at scale 1."""
    return max(least, multiple * round(size * scale / multiple))
