"""Memory estimates: hand-computed figures of Janus-Pro-7B, and what forward and backward passes really hold."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAE

from learner import logprobs, lora
from learner.lora import add_lora
from learner.packing import Sequences, micro_batches
from t2ir1_ray import config as configuration
from t2ir1_ray.config import Config
from t2ir1_ray.fitting import memory
from t2ir1_ray.fitting.memory import Shapes
from t2ir1_ray.fitting.published import published, published_parameters
from t2ir1_ray.janus.policy import freeze
from tests.tiny_janus import tiny_config, tiny_model

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HIDDEN, INTERMEDIATE, LAYERS, LENGTH = 128, 344, 4, 256


@pytest.fixture(scope="module")
def pro_7b() -> Shapes:
    return Shapes.of(published("deepseek-community/Janus-Pro-7B"))


def load(*overrides: str, name: str = "janus_pro_7b") -> Config:
    return configuration.load(name, list(overrides))


def part(parts: tuple[memory.Part, ...], name: str) -> float:
    return next(item.gb for item in parts if item.name == name)


def test_counts_are_those_of_the_model_and_of_the_published_sizes(pro_7b: Shapes) -> None:
    assert pro_7b.language == pytest.approx(6.91e9, rel=1e-3)
    frozen = pro_7b.generation + pro_7b.understanding + pro_7b.vq
    assert frozen == pytest.approx(0.50e9, rel=1e-2)
    linear = 4 * 4096 * 4096 + 3 * 4096 * 11008
    assert pro_7b.language == 2 * 102400 * 4096 + 30 * (linear + 2 * 4096) + 4096
    model = tiny_model()
    tiny = Shapes.of(model.config)
    assert tiny.language + tiny.generation + tiny.understanding + tiny.vq == sum(p.numel() for p in model.parameters())
    assert tiny.language == sum(p.numel() for p in freeze(model).values())
    assert published("models/Janus-Pro-1B/") is not None
    assert published("someone/else") is None


@pytest.mark.parametrize(
    ("ranks", "stage", "expected"),
    [(8, 1, 39), (8, 2, 27), (8, 3, 14), (4, 1, 49), (4, 2, 39), (4, 3, 28), (1, 2, 112)],
)
def test_state_of_the_7b_policy(pro_7b: Shapes, ranks: int, stage: int, expected: float) -> None:
    """The known figures are for gradients in bfloat16 and all 0.50 B frozen parameters; here gradients are float32."""
    frozen = pro_7b.generation + pro_7b.understanding + pro_7b.vq
    parameters, gradients, optimizer = memory.state_bytes(pro_7b.language, frozen, stage, ranks, "bfloat16")
    assert (parameters + gradients / 2 + optimizer) / 1e9 == pytest.approx(expected, abs=1.1)
    assert gradients == 4 * pro_7b.language / (ranks if stage >= 2 else 1)
    assert optimizer == 12 * pro_7b.language / ranks


def test_the_7b_policy_with_lora_fits_one_80_gb_gpu(pro_7b: Shapes) -> None:
    lora = load("learner.ranks=1", "learner.lora_rank=64")
    assert memory.trained_parameters(lora, pro_7b) == 64 * 30 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    learner = memory.estimate(lora, pro_7b, {})[0]
    assert learner.total < 40
    assert memory.estimate(load("learner.ranks=1"), pro_7b, {})[0].sure > 112  # all of it does not


def test_caches_and_weights_of_the_7b_rollout(pro_7b: Shapes) -> None:
    parts = memory.rollout_parts(load("rollout.prompts_per_call=4"), pro_7b)
    assert part(parts, "weights") == pytest.approx((2 * (6.910e9 + 0.101e9) + 4 * 0.0719e9) / 1e9, rel=1e-3)
    assert part(parts, "KV cache") == pytest.approx(6 * 1.0737, rel=1e-3)
    row = 480 * 1024 * 576  # 480 KiB per token
    assert part(parts, "image KV cache") == pytest.approx(4 * 8 * 2 * row * 640 / 576 / 1e9, rel=1e-6)  # kept: 10 x 64
    unguided = memory.rollout_parts(load("rollout.guidance=1", "rollout.prompts_per_call=8"), pro_7b)
    assert part(unguided, "pixels") == pytest.approx(64 * 384 * 384 * 128 * 4 * 5 / 1e9)  # 64 images at once


def test_the_table_has_a_line_per_role_and_does_not_invent_sizes(pro_7b: Shapes) -> None:
    rows = memory.estimate(load(), pro_7b, {"hps": 986_000_000, "orm": 8_000_000_000, "git": None})
    by_role = {row.role: row for row in rows}
    assert list(by_role)[:3] == ["learner", "rollout", "reference"]
    assert part(by_role["expert-hps"].parts, "weights") == pytest.approx(3.944)  # float32
    assert part(by_role["expert-orm"].parts, "weights") == pytest.approx(16)  # bfloat16
    assert not by_role["expert-git"].known
    lines = memory.table(rows).splitlines()
    assert len(lines) == 1 + len(rows)
    assert "?" in next(line for line in lines if line.startswith("expert-git"))
    assert "reference" not in {row.role for row in memory.estimate(load("learner.beta=0"), pro_7b, {})}
    recipe = load().experts
    assert all(published_parameters(expert.path) for expert in recipe.values())
    assert published_parameters("models/orm") is None


def test_an_actor_without_a_gpu_is_a_process_of_its_own(pro_7b: Shapes) -> None:
    rows = {row.role: row for row in memory.estimate(load("experts.hps.num_gpus=0"), pro_7b, {"hps": 1_000_000_000})}
    assert [part.name for part in rows["expert-hps"].parts] == ["weights", "batch", "process"]
    assert rows["expert-hps"].total == pytest.approx(4 + 0.134 + memory.PROCESS_GB, rel=1e-3)
    assert [part.name for part in rows["expert-git"].parts] == ["weights", "batch", "CUDA"]
    sizes = {0.0146: "14.6 MB", 0.1: "0.1 GB", 112.04: "112 GB", 999.6: "1 TB", 15_360: "15.4 TB"}
    assert [memory.amount(gb) for gb in sizes] == list(sizes.values())


def test_an_experts_batch_is_what_an_h200_held(pro_7b: Shapes) -> None:
    """Half of the measured batch of 16: a call scores a group of 8, or batch_size images of it."""
    measured = json.loads((RESULTS / "gpu_check_h200.json").read_text())["parts"]["experts"]["figures"]
    peaks = {each["expert"]: each["peak_GB"] for each in measured if "peak_GB" in each}
    config = load()
    counts = {name: published_parameters(expert.path) for name, expert in config.experts.items()}
    for row in memory.estimate(config, pro_7b, counts):
        if row.role.startswith("expert-"):
            assert part(row.parts, "batch") == pytest.approx(peaks[row.role.removeprefix("expert-")] / 2, rel=0.02)
    small = memory.estimate(load("experts.git.batch_size=2"), pro_7b, counts)
    git = next(row for row in small if row.role == "expert-git")
    assert part(git.parts, "batch") == pytest.approx(peaks["git"] / 8, rel=0.02)
    own = load("experts.mine.kind=package.module.Class", "experts.mine.path=x")
    assert [item.name for item in memory.estimate(own, pro_7b, {"mine": 5})[-1].parts] == ["weights", "CUDA"]


def test_seconds_stand_beside_the_memory(pro_7b: Shapes) -> None:
    rows = memory.estimate(load(), pro_7b, {})
    lines = memory.table(rows, {"learner": 12.34, "rollout": None}).splitlines()
    assert "s a step" in lines[0]
    assert " 12.3  parameters" in lines[1]
    assert " ?  weights" in lines[2]
    assert "s a step" not in memory.table(rows)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive together, without those in `known`."""

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.live = self.most = 0
        self.seen = weakref.WeakKeyDictionary({tensor.untyped_storage(): True for tensor in known})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage.nbytes() and storage not in self.seen:
                self.seen[storage] = True
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
                self.most = max(self.most, self.live)
        return out

    def _free(self, size: int) -> None:
        self.live -= size


CASES = {
    "layers kept": {"gradient_checkpointing": False},
    "layers kept, float32": {"gradient_checkpointing": False, "dtype": "float32"},
    "layers recomputed": {"gradient_checkpointing": True},
    "many words": {"gradient_checkpointing": True, "vocabulary": 8192},
    "many codes": {"gradient_checkpointing": True, "codes": 8192, "images": True},
    "many codes, guided": {"gradient_checkpointing": True, "codes": 8192, "images": True, "guided": True},
    "LoRA": {"gradient_checkpointing": False, "lora_rank": 4},
    "reference": {"gradient": False},
    "reference, many words": {"gradient": False, "vocabulary": 8192},
    "reference, many codes, guided": {"gradient": False, "codes": 8192, "images": True, "guided": True},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_activations_are_what_a_micro_batch_holds(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (logprobs, lora, memory):
        monkeypatch.setattr(module, "CHUNK", 1 << 12)  # else one chunk is more than a small model's all
    case = {
        "vocabulary": 64,
        "codes": 64,
        "gradient": True,
        "images": False,
        "guided": False,
        "dtype": "bfloat16",
    } | case
    sizes = tiny_config(layers=LAYERS, hidden=HIDDEN, kv_heads=4)
    sizes.text_config.intermediate_size, sizes.text_config.vocab_size = INTERMEDIATE, case["vocabulary"]
    sizes.vq_config.num_embeddings = case["codes"]
    rows = 8 if case["guided"] else 4
    model = JanusForConditionalGeneration(sizes).to(getattr(torch, case["dtype"])).train()
    fields = ("gradient_checkpointing", "lora_rank", "dtype")
    learner = replace(
        load().learner,
        tokens_per_batch=rows * LENGTH,
        image_logprobs="guided" if case["guided"] else "conditional",
        **{key: case[key] for key in fields if key in case},
    )
    config = replace(load(), learner=learner)
    config.reference.tokens_per_batch = learner.tokens_per_batch
    if learner.gradient_checkpointing and case["gradient"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = add_lora(model, learner) if learner.lora_rank else list(freeze(model).values())
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)

    rng = np.random.default_rng(0)
    prompts = [rng.integers(7, 20, 4) for _ in range(4)]
    tokens = rng.integers(7, 20, (4, LENGTH - 3))
    nothing = tokens[:, :0]
    plans, images = (nothing, tokens) if case["images"] else (tokens, nothing)
    (batch,) = micro_batches(
        Sequences(prompts, list(plans), prompts, images), rows * LENGTH, 2 if case["guided"] else None
    )
    known = [*model.parameters(), *[parameter.grad for parameter in trained]]
    with Peak(known) as peak, torch.inference_mode(not case["gradient"]):
        values = logprobs.sequence_logprobs(model, batch, 1.0, case["gradient"], 3.0 if case["guided"] else 1.0)
        if case["gradient"]:
            values.logprobs.sum().backward()

    shapes = Shapes.of(sizes)
    expected = memory.learner_work(config, shapes)
    if not case["gradient"]:
        expected = part(memory.reference_parts(config, shapes), "activations") * 1e9
    assert 0.97 * peak.most < expected < 1.2 * peak.most


def test_pixels_take_three_maps_and_a_workspace() -> None:
    sizes = tiny_config().vq_config
    vq = JanusVQVAE(sizes).eval()
    with Peak([*vq.parameters()]) as peak, torch.inference_mode():
        pixels = vq.decode(torch.zeros(4, 36, dtype=torch.long))
    maps = peak.most / (4 * pixels.shape[-1] ** 2 * sizes.base_channels * 4)
    assert 2.9 < maps < memory.VQ_MAPS


def test_a_published_version_is_as_large_as_what_changes(pro_7b: Shapes) -> None:
    assert memory.published_bytes(load(), pro_7b) == pytest.approx(13.8e9, rel=2e-3)
    lora = memory.published_bytes(load("learner.lora_rank=8"), pro_7b)
    assert lora == 2 * (pro_7b.language - 2 * 102400 * 4096)
