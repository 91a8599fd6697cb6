"""What the fuzzer breaks: valid inputs, how they are made wrong, and the code that must refuse or take them."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz_breaking import JUNK, SECRET, Case, as_json, break_bytes, break_value, nasty
from tests.fuzz_files import Images, Names, Questions, Texts
from tests.fuzz_states import Metrics, Resumed, Writers


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
        from t2ir1_ray.records.prompts import read_prompts

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
        from t2ir1_ray.config import PolicyConfig
        from t2ir1_ray.janus import policy

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


class Benchmarks:
    """Prompt files of GenEval, WISE and T2I-CompBench through their readers; what was read is also scored."""

    GENEVAL = [
        {"tag": "colors", "prompt": "a red cup", "include": [{"class": "cup", "count": 1, "color": "red"}]},
        {"tag": "counting", "prompt": "two cups", "include": [{"class": "cup", "count": 2}],
         "exclude": [{"class": "cup", "count": 3}]},
        {"tag": "position", "prompt": "a dog left of a cup",
         "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]},
    ]  # fmt: skip
    WISE = [
        {"Prompt": "a fruit that fell on Newton", "Explanation": "an apple", "Category": "Space", "prompt_id": 530},
        {"Prompt": "a plant in the dark", "Explanation": "pale", "Category": "Biology", "prompt_id": 650},
    ]
    LINES = b"a red cup and a blue dog\r\na cat on the left of a dog\ntwo mice and one cup\n"

    def __init__(self, scratch: Path):
        import numpy as np

        from t2ir1_ray.benchmarks import base, geneval, t2i_compbench, wise

        self.readers = {
            "evaluation_metadata.jsonl": geneval.GenEval(geneval.GenEval.needs),
            "wise.json": wise.Wise({}),
            **{f"{name}_val.txt": t2i_compbench.CompBench({}) for name in ("color", "spatial", "numeracy")},
        }
        seen = [
            base.Found(name, 0.95, (40.0 * i, 0, 40.0 * i + 30, 30)) for i, name in enumerate(("cup", "dog", "cat"))
        ]
        colors = {one.label: ["red"] for one in seen}
        verdict = "Consistency: 2\nRealism: 1\nAesthetic Quality: 0\nScore: 1"
        evidence = {"found": seen, "colors": colors, "answers": [0.5], "verdict": verdict}
        self.view = base.View("", np.zeros((24, 24, 3), np.uint8), evidence)

    def make(self, rng: random.Random) -> Case:
        name = rng.choice(list(self.readers))
        if name.endswith(".txt"):
            return {name: break_bytes(rng, self.LINES)}
        rows = break_value(rng, self.GENEVAL if name.endswith(".jsonl") else self.WISE)
        lines = rows if name.endswith(".jsonl") and isinstance(rows, list) else [rows]
        data = b"\n".join(map(as_json, lines)) + b"\n"
        return {name: break_bytes(rng, data) if rng.random() < 0.3 else data}

    def run(self, folder: Path) -> None:
        (file,) = folder.iterdir()
        benchmark = self.readers[file.name]
        for item in benchmark.read(file):
            assert item.prompt.strip()
            benchmark.observe(item, None, lambda *call: None)
            assert all(value is not None for value in benchmark.score(item, self.view).values())
            assert all(len(part.encode()) <= 255 for part in benchmark.image_path(item, 0, 1).split("/"))


class Runs:
    """Run folders through the report: metrics, configuration and a dump of one step."""

    METRICS = [{"step": 1, "loss": 0.5, "reward/mean": 1.0, "time/step_s": 2.0}, {"step": 2, "loss": None, "kl": 0.1}]
    CONFIG = {"train": {"steps": 2}, "experts": {"a": {"path": "e", "runtime_env": {"env_vars": {"A": SECRET}}}}}

    def __init__(self, scratch: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        from t2ir1_ray.report_page import build_page, read_run
        from tests.system.report_runs import samples

        self.read, self.build = read_run, build_page
        sink = pa.BufferOutputStream()
        pq.write_table(samples(step=1, prompts=[0, 2], group=2, edge=8, seed=0), sink)
        self.dump = sink.getvalue().to_pybytes()

    def make(self, rng: random.Random) -> Case:
        part = rng.choice(("metrics", "metrics", "config", "dump", "link"))
        metrics: Any = break_value(rng, self.METRICS) if part == "metrics" else self.METRICS
        data = b"\n".join(map(as_json, metrics if isinstance(metrics, list) else [metrics])) + b"\n"
        config = as_json(break_value(rng, self.CONFIG) if part == "config" else self.CONFIG)
        case: Case = {
            "metrics.jsonl": break_bytes(rng, data) if part == "metrics" and rng.random() < 0.3 else data,
            "config.yaml": break_bytes(rng, config) if part == "config" and rng.random() < 0.3 else config,
            "step_000001.parquet": break_bytes(rng, self.dump) if part == "dump" else self.dump,
        }
        if part == "link":
            case[rng.choice(list(case))] = Path(rng.choice(("/dev/zero", "/nowhere", ".", "/etc/passwd")))
        return case

    def run(self, folder: Path) -> None:
        (folder / "rollouts").mkdir()
        (folder / "step_000001.parquet").rename(folder / "rollouts" / "step_000001.parquet")
        page = self.build([self.read(folder)], 64)
        assert "</script><script>document.title" not in page.html, "a prompt became markup"


TARGETS: dict[str, Callable[[Path], Any]] = {
    "prompts": Prompts,
    "config": Config,
    "checkpoint": Checkpoint,
    "benchmark": Benchmarks,
    "texts": Texts,
    "questions": Questions,
    "names": Names,
    "images": Images,
    "run": Runs,
    "writer": Writers,
    "resume": Resumed,
    "metrics": Metrics,
}
