"""How the fuzzer makes valid input wrong: absurd values in JSON-like trees, broken bytes."""

import json
import random
from pathlib import Path
from typing import Any

Case = dict[str, bytes | Path]
"""One input: file name -> contents, or where a symbolic link points."""

SECRET = "fuzz-secret-5f1d"
"""Value of an environment variable that no input may read."""

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, -(10**400), 1e308, float("nan"), float("inf"), -0.0, 0.5,
    "", " ", "\0", "a\0b", "\ud800", "a\nb", "\x1b[31m", "nan", "1e3", "x" * 5000, "é" * 300, "\u2028", "???", ".",
    "${oc.env:FUZZ_SECRET}", "${oc.${oc.env:FUZZ_SECRET}:X}", "${oc.decode:${oc.env:FUZZ_SECRET}}", "${policy.path}",
    "${nope:1}", "${policy.nope}", "${.x}", "${", "\\${x}", "${shipped:policy}", "${shipped:}", "${data}", "{prompt}",
    "../../../etc/passwd", "/dev/zero", "/etc/passwd", "~", "..", "nobody/nothing", "<begin_of_image>", "<|User|>",
    "<｜end▁of▁sentence｜>", "float32", "float16", "int64", "spatial", "numeracy", "janus", "multi_modality", "bert",
    [], [[]], [None], ["a", 1], [1, 2, 3], {}, {"": None}, {"a": {"b": [{}]}}, {"obj1": "a", "obj2": 2, "locality": ""},
]  # fmt: skip
JUNK = [
    b"\0", b"\xff", b"\xff\xfe", b"\n", b'"', b"{", b"}}}", b"[" * 2000, b"\\u0000", b"\\ud800", b"\xed\xa0\x80", b"${",
    b"*a", b"&a ", b"<<: ", b"!!python/object/apply:os.system ['true']", b": ", b"- ", b"---\n", b"9" * 5000, b"1e999",
]  # fmt: skip


def nasty(rng: random.Random) -> Any:
    if rng.random() < 0.02:
        value: Any = rng.choice(NASTY)
        for _ in range(rng.choice((3, 100, 400, 900, 5000))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return rng.choice(NASTY)


def break_value(rng: random.Random, root: Any) -> Any:
    """A copy of a JSON-like value with one node replaced, removed, added, renamed or doubled."""
    try:
        root = json.loads(json.dumps(root))
    except RecursionError:  # broken enough
        return root
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in items:
            places.append((node, key))
            walk(child)

    walk(root)
    if not places or rng.random() < 0.01:
        return nasty(rng)
    node, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        other = rng.choice([text for text in NASTY if isinstance(text, str)])
        node[other if rng.random() < 0.5 else f"{key}x"] = node.pop(key)
    elif kind == 2 and isinstance(node, dict):
        node[rng.choice((f"{key}_", "", "a.b", "prompt_id", "quantization_config", "auto_map"))] = nasty(rng)
    elif kind == 3:
        other, place = rng.choice(places)
        node[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else None))
    else:
        node[key] = nasty(rng)
    return root


def break_bytes(rng: random.Random, data: bytes) -> bytes:
    """A copy with a few bytes flipped, cut, doubled or replaced by junk."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 4, 30, 200))
        kind = rng.randrange(6)
        if kind == 0:
            for _ in range(size):
                if out:
                    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = out[at : at + size] * rng.choice((1, 3))
        else:
            out[at : at + size * (kind == 5)] = rng.choice(JUNK)
    return bytes(out)


def as_json(value: Any) -> bytes:
    """JSON with lone surrogates as escapes and, past Python's recursion limit, plain nesting."""
    try:
        return json.dumps(value).encode()
    except (RecursionError, ValueError):  # too deep, or a number of too many digits
        return b'{"a":' * 3000 + b"1" + b"}" * 3000
