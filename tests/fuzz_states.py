"""What the fuzzer breaks of a run's state: who writes its folder, what it goes on with, what its metrics are called."""

import json
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t2ir1_ray.errors import RunError, UserError
from tests.fuzz_breaking import Case, as_json, break_bytes, break_value, nasty


class Writers:
    """Files of other writers, of any content and age: whoever they name, the folder is taken over or refused."""

    SEED = {"host": "node-7", "pid": 4711, "started": "2026-01-01 10:00:00", "since": "2026-01-01 10:00:05",
            "boot": "b", "token": "t"}  # fmt: skip

    def __init__(self, scratch: Path):
        from t2ir1_ray.storage import OneWriter, one_writer

        self.module, self.writer, self.file = one_writer, OneWriter, one_writer.FILE

    def make(self, rng: random.Random) -> Case:
        data = as_json(break_value(rng, self.SEED))
        age = rng.choice((0, 1, 599, 601, 10**9))
        return {"holder": break_bytes(rng, data) if rng.random() < 0.4 else data, "age": b"%d" % age}

    def run(self, folder: Path) -> None:
        self.module.SILENCE_S, self.module.HEARTBEAT_S = 0.003, 0.003  # in the fuzzer's own process
        left, said = folder / self.file, []
        (folder / "holder").rename(left)
        last = max(0.0, left.stat().st_mtime - int((folder / "age").read_bytes()))
        os.utime(left, (last, last))
        with self.writer(folder, "--out", said.append) as writer:
            writer.check()
        assert all(line.isprintable() and len(line) < 1000 for line in said)
        assert not left.exists(), "the writer left its file"


class Resumed:
    """Any two configurations: a difference is free, asks for --force or is refused, and a forced one really holds."""

    def __init__(self, scratch: Path):
        from t2ir1_ray import config
        from t2ir1_ray.config import resuming
        from t2ir1_ray.config.rules import leaves
        from t2ir1_ray.journal.resume import check_unchanged

        self.config, self.resuming, self.check = config, resuming, check_unchanged
        self.base = scratch / "base.yaml"
        config.save(config.load("shapes"), self.base)
        self.before = config.load(str(self.base))
        tree = asdict(self.before)
        self.values = {key: value for key, value in leaves(tree) if not key.startswith("experts.")}
        self.values |= {f"experts.hps.{key}": 1 for key in ("weight", "replicas", "num_cpus", "options.new")}

    def make(self, rng: random.Random) -> Case:
        keys = rng.sample(sorted(self.values), rng.choice((1, 1, 2, 4)))
        return {
            "overrides.json": as_json([f"{key}={as_json(self._other(rng, self.values[key])).decode()}" for key in keys])
        }

    @staticmethod
    def _other(rng: random.Random, value: Any) -> Any:
        if rng.random() < 0.2:
            return nasty(rng)
        if isinstance(value, bool):
            return not value
        return rng.choice((1, 2, 0.5, 64)) if isinstance(value, int | float) else rng.choice(("linear", "async", "x"))

    def run(self, folder: Path) -> None:
        before = self.before
        now = self.config.load(str(self.base), json.loads((folder / "overrides.json").read_bytes()))
        found = self.resuming.differences(before, now)
        assert any(found.values()) == (before != now), "a difference that nobody sees"
        fixed, forced = found[self.resuming.Change.FIXED], found[self.resuming.Change.FORCED]
        for force in (True, False):
            try:
                self.check(folder, before, now, force)
                accepted = True
            except UserError:
                accepted = False
            assert not (accepted and fixed), "what a checkpoint is made of has changed"
            assert accepted or fixed or not force, "--force does not help"
            assert not (accepted and forced and not force), "the figures would change"


class Metrics:
    """Lines of metrics under the names that data make: a line is taken only if a store of paths can hold every name."""

    def __init__(self, scratch: Path):
        from t2ir1_ray.journal.metric_names import MetricNames
        from t2ir1_ray.records.names import part

        self.names, self.part = MetricNames, part

    def make(self, rng: random.Random) -> Case:
        words = ["kl", "a", "b", "reward", "step_s", "..", ".", "", "x/y", "A b", "é", "\ud800", "\0", "a" * 300, "CON"]
        lines = [
            ["/".join(rng.choice(words) for _ in range(rng.choice((1, 1, 2, 3)))) for _ in range(rng.choice((1, 3, 6)))]
            for _ in range(rng.choice((1, 2)))
        ]
        return {"lines.json": as_json({"lines": lines, "data": [rng.choice(words) for _ in range(3)]})}

    def run(self, folder: Path) -> None:
        case = json.loads((folder / "lines.json").read_bytes())
        texts = set(case["data"])
        assert len({self.part(text) for text in texts}) == len(texts)
        self.names().check(f"heldout/task/{self.part(text)}" for text in texts)
        names, store = self.names(), folder / "store"
        for line in case["lines"]:
            try:
                names.check(line)
            except RunError as error:
                raise UserError(str(error)) from None
            for name in line:
                path = store / name
                assert path.resolve().is_relative_to(store.resolve()), "outside of the store"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"1")
