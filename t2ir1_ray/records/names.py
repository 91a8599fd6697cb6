"""Names that users and data choose, as parts of names that a store can hold."""

import hashlib
import re

LONGEST = 64


def part(text: str) -> str:
    """`text` in letters, digits and `_.-`, different for different texts; ordinary words stay as they are.

    Other characters become `.<hexadecimal>.`; a text that is too long then ends in a digest of itself.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", lambda match: f".{ord(match[0]):x}.", text)
    if not safe or len(safe) > LONGEST:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        safe = f"{safe[: LONGEST - 20]}..{digest}"
    return safe
