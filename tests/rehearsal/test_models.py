"""The models of a rehearsal: of the published sizes, opened by the ordinary loaders, the same in every process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import JanusConfig

from rewards.experts import load_expert
from t2ir1_ray.checkpoints.random_weights import has_random_weights, random_parameters, random_tensors
from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.fitting.inventory import count_parameters
from t2ir1_ray.fitting.memory import Shapes
from t2ir1_ray.fitting.published import published, published_parameters
from t2ir1_ray.janus.policy import PromptFormat, checked_tensors, load_config, load_model, load_tokenizer
from t2ir1_ray.janus.random_policy import PLAN
from t2ir1_ray.rehearsal.experts import WRITERS
from t2ir1_ray.rehearsal.policy import scaled_janus, write_policy
from tests.rewards.tiny_experts import ROWS, WORDS, random_images

CHECKPOINTS = {
    "hps": "HPS_v2.1_compressed.pt",
    "git": "git-large-vqav2",
    "blip": "blip-vqa-capfilt-large",
    "grounding_dino": "grounding-dino-tiny",
    "orm": "ORM-T2I-R1",
}
TALK = ["User", "Assistant", ":", ".", *WORDS]


def janus(size: str, scale: float) -> JanusConfig:
    return scaled_janus(published(f"Janus-Pro-{size}"), scale)


@pytest.fixture(scope="module")
def small_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "policy"
    write_policy(folder, janus("7B", 0.05), TALK)
    return folder


@pytest.mark.parametrize("kind", WRITERS)
def test_an_expert_has_as_many_parameters_as_the_published_one(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path, 1.0, WORDS)
    assert random_parameters(tmp_path) == pytest.approx(published_parameters(CHECKPOINTS[kind]), rel=2e-3)
    assert count_parameters(str(tmp_path)) == random_parameters(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1e6


@pytest.mark.parametrize("kind", WRITERS)
def test_a_small_expert_opens_and_scores_and_every_replica_is_the_same(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path, 0.05, WORDS)
    assert random_parameters(tmp_path) < 10_000_000
    images, dtype = random_images(len(ROWS), 64, 64), "bfloat16" if kind == "orm" else "float32"
    first, second = (load_expert(kind, str(tmp_path), dtype=dtype).score(images, ROWS) for _ in range(2))
    assert "ok" in first.status
    assert "failed" not in first.status
    np.testing.assert_array_equal(first.scores, second.scores)
    if kind != "grounding_dino":  # which sees everything or nothing
        assert len(set(first.scores[np.isfinite(first.scores)])) > 1


@pytest.mark.parametrize("size", ["1B", "7B"])
def test_the_whole_policy_is_the_published_one_and_a_small_one_has_its_structure(size: str) -> None:
    whole = published(f"Janus-Pro-{size}")
    assert janus(size, 1.0).to_dict() == whole.to_dict()
    for scale in (0.01, 0.05, 0.3, 0.77):
        small, shapes = janus(size, scale), Shapes.of(janus(size, scale))
        text = small.text_config
        assert text.hidden_size == 128 * text.num_attention_heads == 128 * text.num_key_value_heads
        assert text.num_hidden_layers >= 2
        assert shapes.image_tokens == small.vision_config.num_image_tokens
        assert shapes.image_side == small.vision_config.image_size
        assert shapes.language < Shapes.of(whole).language


def test_a_policy_folder_holds_no_weights_and_passes_every_check(small_policy: Path) -> None:
    assert has_random_weights(small_policy)
    assert {file.suffix for file in small_policy.iterdir()} == {".json"}
    config = load_config(str(small_policy))
    tensors = checked_tensors(str(small_policy), config)
    assert sum(tensor.numel() for tensor in tensors.values()) == random_parameters(small_policy)
    again = checked_tensors(str(small_policy), config)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_policy_has_memory_of_its_own(small_policy: Path, dtype: str) -> None:
    """The tensors that it is loaded from overlap: what learns must not."""
    model = load_model(str(small_policy), dtype)
    parameters = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    changed = "model.language_model.layers.0.self_attn.q_proj.weight"
    with torch.no_grad():
        parameters[changed].add_(1)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]) == (name != changed)
    spread = before[changed].float().std().item()
    assert spread == pytest.approx(before[changed].shape[1] ** -0.5, rel=0.05)


@pytest.mark.parametrize(("size", "layers"), [("7B", None), ("1B", None), ("7B", 30)])
def test_a_plan_ends_after_a_usual_number_of_tokens(size: str, layers: int | None, tmp_path: Path) -> None:
    config = janus(size, 0.05)
    config.text_config.num_hidden_layers = layers or config.text_config.num_hidden_layers
    write_policy(tmp_path / "policy", config, TALK)
    path = str(tmp_path / "policy")
    form = PromptFormat(load_tokenizer(path), PolicyConfig(path=path))
    words = torch.randint(20, config.text_config.vocab_size, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        model = load_model(path)
        ids = torch.tensor([[*form.plan_prompt_ids("a red cat"), *words]])
        hidden = model.model.language_model(input_ids=ids).last_hidden_state
        chance = model.lm_head(hidden).softmax(-1)[0, :, form.eos_id]
    assert PLAN / 1.5 < 1 / chance.mean() < PLAN * 1.5
    plan = form.plan_text(words)
    assert len(plan.split()) == len(words)  # each is a word again when the image is drawn
    assert len(form.image_prompt_ids("a red cat", plan)) > len(words)


def test_tensors_are_drawn_by_their_names_and_take_no_memory() -> None:
    shapes = {"a.weight": torch.Size([200_000, 512]), "b.weight": torch.Size([64, 32, 3, 3])}
    shapes |= {"norm.weight": torch.Size([7]), "norm.bias": torch.Size([7]), "c.weight": torch.Size([64, 288])}
    tensors = random_tensors(shapes)
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    assert tensors["norm.weight"].tolist() == [1] * 7
    assert tensors["norm.bias"].tolist() == [0] * 7
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
    assert sum(storages.values()) < 20e6  # of 800 MB
    assert tensors["b.weight"].std().item() == pytest.approx(288**-0.5, rel=0.1)
    assert not torch.equal(tensors["b.weight"].flatten(1), tensors["c.weight"])
    rows = tensors["c.weight"][:8]
    assert (torch.corrcoef(rows) - torch.eye(8)).abs().max() < 0.3


def test_a_mark_says_how_many_parameters_there_are(tmp_path: Path) -> None:
    assert not has_random_weights(tmp_path)
    (tmp_path / "random_weights.json").write_text(json.dumps({"parameters": 5}))
    assert has_random_weights(tmp_path)
    assert count_parameters(str(tmp_path)) == 5
