"""Hostile input by the hundred thousand: `python -m tests.fuzz [--inputs N] [--seed S] [--only prompts,config,...]`.

Every input is a small folder of files, made by breaking a valid one: bytes are flipped, cut and repeated, values of
JSON, YAML and safetensors headers replaced by absurd ones. Input number i of a target depends on the seed and i only.
It must be accepted, or refused with a UserError of one line; anything else (another exception, a dead or hanging
process, a secret of the environment in what was read) is a crash: saved under --keep, exit code 1.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from t2ir1_ray.errors import UserError

LINE_LIMIT = 2000
"""Characters of an error line: one that quotes a whole file is no help."""
TIME_LIMIT_S = 5.0
MEMORY_LIMIT = 12 << 30

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


class Prompts:
    """Prompt files through `prompts.read_prompts`."""

    ROWS = [
        {"prompt": "a car below a zebra", "nouns": ["car", "zebra"], "attr_nouns": None, "task_type": "spatial",
         "spatial_info": {"obj1": "car", "obj2": "zebra", "locality": "below"}},
        {"prompt": "three red cups", "nouns": ["cup"], "attr_nouns": ["red cup"], "task_type": "numeracy",
         "numeracy_info": [{"obj_name": "cup", "num": 3}], "prompt_id": "mine"},
        {"prompt": "a {brace} <begin_of_image> ✓", "nouns": [], "task_type": "non", "prompt_id": 7},
    ]  # fmt: skip

    def __init__(self, scratch: Path):
        from t2ir1_ray.prompts import read_prompts

        self.read = read_prompts

    def make(self, rng: random.Random) -> Case:
        rows = [rng.choice(self.ROWS) for _ in range(rng.choice((1, 2, 5)))]
        rows[-1] = break_value(rng, rows[-1])
        if rng.random() < 0.03:
            return {"prompts.parquet": self._parquet(rng, rows)}
        if rng.random() < 0.0005:
            return {"prompts.jsonl": as_json({**self.ROWS[0], "prompt": "x" * (10 << 20)})}
        data = b"\n".join(map(as_json, rows)) + b"\n"
        return {rng.choice(("prompts.jsonl", "prompts.json")): break_bytes(rng, data) if rng.random() < 0.6 else data}

    def _parquet(self, rng: random.Random, rows: list[Any]) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        try:
            pq.write_table(pa.Table.from_pylist(rows), sink)
        except (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError, RecursionError):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(self.ROWS[:2]), sink)
        data = sink.getvalue().to_pybytes()
        return break_bytes(rng, data) if rng.random() < 0.8 else data

    def run(self, folder: Path) -> None:
        table = self.read(next(folder.iterdir()))
        table.validate(full=True)
        assert len(set(table["prompt_id"].to_pylist())) == len(table) > 0


class Config:
    """YAML files and overrides through `config.load`; what was accepted is also saved and read back."""

    SEED = {
        "policy": {"path": "p", "dtype": "float32", "plan_template": "draw {prompt}"},
        "data": {"prompts": "d.jsonl", "prompts_per_step": 4},
        "rollout": {"group_size": 4, "num_gpus": 0.5, "guidance": 2.0},
        "experts": {"a": {"kind": "hps", "path": "e", "weight": 0.5, "options": {"x": [1, {"y": None}]},
                          "runtime_env": {"env_vars": {"A": "b"}}}},
        "learner": {"learning_rate": 1e-6, "betas": [0.9, 0.99], "lora_targets": ["q_proj"], "advantage_std": False},
        "train": {"steps": 5, "seed": 1},
        "eval": {"prompts": None, "every": 0},
        "journal": {"name": "n", "keep_last": 1},
        "cluster": {"object_store_gb": 1.5, "address": None},
    }  # fmt: skip
    BOMB = b"a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 9)
    )

    def __init__(self, scratch: Path):
        from t2ir1_ray import config

        self.config = config
        os.environ["FUZZ_SECRET"] = SECRET
        self.keys = [f"{section}.{key}" for section, keys in self.SEED.items() for key in keys] + list(self.SEED)

    def make(self, rng: random.Random) -> Case:
        tree: Any = self.SEED
        for _ in range(rng.choice((0, 1, 1, 2))):
            tree = break_value(rng, tree)
        data = as_json(tree) if rng.random() < 0.5 else self._yaml(tree)
        if rng.random() < 0.3:
            data = break_bytes(rng, data)
        if rng.random() < 0.01:
            data += self.BOMB
        overrides = [self._override(rng) for _ in range(rng.choice((0, 0, 1, 1, 3)))]
        return {"fuzz.yaml": data, "overrides.json": as_json(overrides)}

    def _override(self, rng: random.Random) -> str:
        value = nasty(rng) if rng.random() < 0.7 else rng.choice(JUNK).decode("latin-1")
        key = rng.choice([*self.keys, "experts.a.options.z", "experts.b.kind", "learner.lora_targets[0]", "x", "a..b"])
        text = f"{key}={value if isinstance(value, str) else as_json(value).decode()}"
        return text if rng.random() < 0.8 else break_bytes(rng, text.encode("utf-8", "replace")).decode("latin-1")

    @staticmethod
    def _yaml(tree: Any) -> bytes:
        import yaml

        try:
            return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, RecursionError, ValueError):
            return as_json(tree)

    def run(self, folder: Path) -> None:
        loaded = self.config.load(str(folder / "fuzz.yaml"), json.loads((folder / "overrides.json").read_bytes()))
        assert SECRET not in repr(loaded), "the environment was read"
        self.config.save(loaded, folder / "saved.yaml")
        assert self.config.load(str(folder / "saved.yaml")) == loaded, "not what was saved"


class Checkpoint:
    """Janus folders, whole, sharded, as `.bin` and in DeepSeek's layout, through everything that opens a policy."""

    def __init__(self, scratch: Path):
        from safetensors.torch import load_file

        from tests.tiny_janus import write_tiny_janus

        self.seed = write_tiny_janus(scratch / "janus", layers=1, hidden=32)
        weights = (self.seed / "model.safetensors").read_bytes()
        size = int.from_bytes(weights[:8], "little")
        self.header, self.body = json.loads(weights[8 : 8 + size]), weights[8 + size :]
        self.weights, self.json = weights, {f.name: json.loads(f.read_bytes()) for f in self.seed.glob("*.json")}
        self.index = {"weight_map": {name: "a.safetensors" for name in self.header if name != "__metadata__"}}
        self.bin = self._bin(load_file(self.seed / "model.safetensors"))

    def make(self, rng: random.Random) -> Case:
        case: Case = {file.name: file for file in self.seed.iterdir()}
        part = rng.choice(
            ("header", "header", "bytes", "config", "config", "tokenizer", "index", "bin", "layout", "link")
        )
        if part == "header":
            case["model.safetensors"] = self._safetensors(break_value(rng, self.header), rng)
        elif part == "bytes":
            head = len(self.weights) - len(self.body)
            case["model.safetensors"] = break_bytes(rng, self.weights[:head]) + self.body
        elif part in ("config", "tokenizer"):
            name = "config.json" if part == "config" else rng.choice(("tokenizer.json", "tokenizer_config.json"))
            data = as_json(break_value(rng, self.json[name]))
            case[name] = break_bytes(rng, data) if rng.random() < 0.2 else data
        elif part == "index":
            case["a.safetensors"] = case.pop("model.safetensors")
            data = as_json(break_value(rng, {"weight_map": dict(list(self.index["weight_map"].items())[:3])}))
            case["model.safetensors.index.json"] = break_bytes(rng, data) if rng.random() < 0.3 else data
        elif part == "bin":
            del case["model.safetensors"]
            case["pytorch_model.bin"] = break_bytes(rng, self.bin)
        elif part == "layout":
            case["config.json"] = as_json(break_value(rng, ORIGINAL_CONFIG))
            names = {rng.choice(ORIGINAL_NAMES): value for value in self.header.values() if "dtype" in value}
            case["model.safetensors"] = self._safetensors(self.header | names, rng)
        else:
            target = rng.choice(("/dev/zero", "/nowhere", "model.safetensors", ".", "/etc/passwd", "config.json"))
            case[rng.choice(("model.safetensors", "config.json", "tokenizer.json"))] = Path(target)
        return case

    def _safetensors(self, header: Any, rng: random.Random) -> bytes:
        data = as_json(header)
        size = rng.choice((len(data),) * 9 + (0, len(data) + 5, 2**31, 2**63, 2**64 - 1))
        return size.to_bytes(8, "little") + data + self.body

    @staticmethod
    def _bin(tensors: dict[str, Any]) -> bytes:
        import io

        import torch

        buffer = io.BytesIO()
        torch.save(dict(list(tensors.items())[:4]), buffer)
        return buffer.getvalue()

    def run(self, folder: Path) -> None:
        from t2ir1_ray import policy
        from t2ir1_ray.config import PolicyConfig

        policy.checked_tensors(str(folder), policy.load_config(str(folder)))
        form = policy.PromptFormat(policy.load_tokenizer(str(folder)), PolicyConfig(path=str(folder)))
        ids = form.image_prompt_ids("a red <begin_of_image> <｜end▁of▁sentence｜> <|User|> circle", "<｜▁pad▁｜>")
        assert not {form.bos_id, form.eos_id, form.pad_id, form.boi_id} & set(ids[1:-1]), "text became control"


ORIGINAL_NAMES = [
    "gen_vision_model.quantize.embedding.weight", "vision_model.vision_tower.blocks.0.attn.qkv.weight",
    "vision_model.vision_tower.pos_embed", "language_model.lm_head.weight", "gen_aligner.layers.0.weight",
]  # fmt: skip
ORIGINAL_CONFIG = {
    "model_type": "multi_modality",
    "language_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
                        "intermediate_size": 64},
    "vision_config": {"params": {"image_size": 32, "layers": 1, "heads": 2, "patch_size": 8}},
    "aligner_config": {"params": {"depth": 2, "input_dim": 32, "n_embed": 32}},
    "gen_vision_config": {"params": {"image_token_size": 64, "n_embed": 8}},
    "gen_aligner_config": {"params": {"depth": 2, "input_dim": 8, "n_embed": 32}},
    "gen_head_config": {"params": {"image_token_embed": 32, "image_token_size": 64, "n_embed": 32}},
}  # fmt: skip

TARGETS: dict[str, Callable[[Path], Any]] = {"prompts": Prompts, "config": Config, "checkpoint": Checkpoint}


class Hang(BaseException):
    """An input took longer than the time limit."""


@dataclass
class Totals:
    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused


def main() -> int:
    options = _parser().parse_args()
    print(f"{'target':<12}{'inputs':>9}{'accepted':>10}{'refused':>9}{'crashes':>9}{'inputs/s':>10}{'slowest':>9}")
    crashed = False
    for name in options.only.split(","):
        first, last = options.first, options.first + options.inputs
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            target = TARGETS[name](Path(scratch))
            totals, crashes = fuzz(name, target, range(first, last), options.seed, options.keep)
        rate = options.inputs / max(totals.seconds, 1e-9)
        count = sum(crashes.values())
        print(
            f"{name:<12}{options.inputs:>9}{totals.accepted:>10}{totals.refused:>9}{count:>9}{rate:>10.0f}"
            f"{totals.slowest_s:>8.2f}s",
            flush=True,
        )
        for what, number in crashes.most_common():
            print(f"  {number} x {what}")
        crashed |= bool(crashes)
    return int(crashed)


def fuzz(name: str, target: Any, indices: range, seed: int, keep: Path) -> tuple[Totals, Counter[str]]:
    """Run the inputs in a child process; one that dies or hangs is replaced, and goes on behind its last input."""
    totals, crashes, begin = Totals(), Counter[str](), time.perf_counter()
    context = multiprocessing.get_context("fork")
    while indices:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(target, name, indices, seed, sender), daemon=True)
        child.start()
        sender.close()
        done = indices.start
        try:
            while done < indices.stop and receiver.poll(10 * TIME_LIMIT_S):
                done, what, seconds = receiver.recv()
                totals.slowest_s = max(totals.slowest_s, seconds)
                if what in ("accepted", "refused"):
                    setattr(totals, what, getattr(totals, what) + 1)
                else:
                    _save(keep, name, target, seed, done - 1, what, crashes)
            hung = done < indices.stop
        except EOFError:
            hung = False
        if child.is_alive() and done < indices.stop:
            child.kill()
        child.join()
        if done < indices.stop:
            what = "hang outside Python" if hung else f"process died, exit code {child.exitcode}"
            _save(keep, name, target, seed, done, what, crashes)
            done += 1
        indices = range(done, indices.stop)
    totals.seconds = time.perf_counter() - begin
    return totals, crashes


def _work(target: Any, name: str, indices: range, seed: int, results: Connection) -> None:
    """The child: (index behind the input, outcome, seconds) for every input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # nobody answers a question, and libraries may warn as they like
        os.dup2(nothing, stream)
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for index in indices:
            folder = Path(scratch) / "input"
            _write(target.make(_random(name, seed, index)), folder)
            begin = time.perf_counter()
            what = outcome(lambda folder=folder: target.run(folder))
            results.send((index + 1, what, time.perf_counter() - begin))
            shutil.rmtree(folder)


def outcome(run: Callable[[], None]) -> str:
    """ "accepted", "refused", or a line that says how it crashed and where."""
    try:
        with _time_limit(TIME_LIMIT_S):
            run()
    except UserError as error:
        line = str(error)
        if "\n" in line or len(line) > LINE_LIMIT or not line:
            return f"UserError that is not one line of at most {LINE_LIMIT} characters: {line[:100]!r}"
        return "refused"
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        place = next((f for f in reversed(frames) if Path(f.filename).name != Path(__file__).name), frames[-1])
        return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:100]!r}"
    return "accepted"


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hang(*_: object) -> None:
    raise Hang(f"longer than {TIME_LIMIT_S} s")


def _random(name: str, seed: int, index: int) -> random.Random:
    return random.Random(f"{name} {seed} {index}")


def _write(case: Case, folder: Path) -> None:
    folder.mkdir()
    for name, content in case.items():
        if isinstance(content, Path):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)


def _save(keep: Path, name: str, target: Any, seed: int, index: int, what: str, crashes: Counter[str]) -> None:
    """Keep the first inputs of every kind of crash; `--first INDEX --inputs 1` makes each of them again."""
    crashes[what.split(": ")[0]] += 1
    folder = keep / f"{name}-{seed}-{index}"
    if crashes[what.split(": ")[0]] > 5 or folder.exists():
        return
    keep.mkdir(parents=True, exist_ok=True)
    _write(target.make(_random(name, seed, index)), folder)
    (folder / "crash.json").write_text(json.dumps({"target": name, "seed": seed, "index": index, "what": what}) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=1000, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(TARGETS), help="targets, separated by commas")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path(tempfile.gettempdir()) / "fuzz-crashes",
        metavar="DIR",
        help="where crashes are saved",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
