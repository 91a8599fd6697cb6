"""File names made of a person's text."""

import hashlib

MAX_BYTES = 255
"""Of a file's name, on every common file system: bytes of UTF-8, not characters."""
HASH_CHARACTERS = 8


def file_name(text: str, ending: str = "", max_bytes: int = MAX_BYTES) -> str:
    """`text` and `ending` as the name of one file, at most `max_bytes` bytes long.

    Separators and control characters become blanks, dots in front (hidden files, parent folders) go. A text that is
    too long is cut between characters, and a hash of all of it stands behind: texts that differ keep names that do.
    Raises ValueError if `ending` leaves no room.
    """
    stem = "".join(" " if c in "/\\" or not (c.isprintable() or c == "\u200d") else c for c in text).lstrip(". ")
    room = max_bytes - len(ending.encode())
    if room <= HASH_CHARACTERS:
        raise ValueError(f"{ending!r} leaves no room in {max_bytes} bytes")
    if not stem or len(stem.encode()) > room:
        mark = hashlib.blake2b(text.encode(), digest_size=HASH_CHARACTERS // 2).hexdigest()
        stem = stem.encode()[: room - len(mark) - 1].decode(errors="ignore")  # half a character at the end goes
        stem = f"{stem}~{mark}" if stem else mark
    return stem + ending
