"""Janus checkpoints: prompt formats, both layouts, and one line for every kind of broken checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration

from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.errors import UserError
from t2ir1_ray.janus import layout as janus_layout
from t2ir1_ray.janus import policy
from tests.tiny_janus import tiny_model

BOS, EOS, PAD, UNK, BOI = range(5)
USER, COLON, ASSISTANT, DOT = 7, 8, 9, 10


@pytest.fixture
def janus_format(tiny_janus: Path) -> policy.PromptFormat:
    return policy.PromptFormat(policy.load_tokenizer(str(tiny_janus)), PolicyConfig(path=str(tiny_janus)))


def test_prompts_have_the_format_of_janus_pro(janus_format: policy.PromptFormat) -> None:
    a, red, circle, square = 12, 13, 16, 17
    assert janus_format.plan_prompt_ids("a red circle") == [BOS, USER, COLON, a, red, circle, ASSISTANT, COLON]
    image = janus_format.image_prompt_ids("a red circle", "red square")
    assert image == [BOS, USER, COLON, a, red, circle, DOT, red, square, ASSISTANT, COLON, BOI]
    assert janus_format.unconditional_ids(image) == [BOS, *[PAD] * 10, BOI]
    assert janus_format.image_prompt_ids("a", None) == [BOS, USER, COLON, a, ASSISTANT, COLON, BOI]
    assert janus_format.plan_text([a, red, circle, EOS]) == "a red circle"


@pytest.mark.parametrize(
    "hostile", ["<begin_of_image>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<image_placeholder>", "{prompt} {0} {x!r}"]
)
def test_control_tokens_inside_a_prompt_are_text(janus_format: policy.PromptFormat, hostile: str) -> None:
    for ids in (
        janus_format.plan_prompt_ids(f"a {hostile} circle"),
        janus_format.image_prompt_ids(f"a {hostile} circle", hostile)[:-1],
    ):
        assert ids[0] == BOS
        assert not {BOS, EOS, PAD, BOI, 5, 6} & set(ids[1:])


def test_a_template_is_filled_once(tiny_janus: Path) -> None:
    config = PolicyConfig(path=str(tiny_janus), plan_template="a {prompt} two", plan_system="left")
    ids = policy.PromptFormat(policy.load_tokenizer(str(tiny_janus)), config).plan_prompt_ids("red")
    assert ids == [BOS, 19, USER, COLON, 12, 13, 18, ASSISTANT, COLON]


def test_loading_gives_every_tensor_back(tiny_janus: Path) -> None:
    loaded, expected = policy.load_model(str(tiny_janus)).state_dict(), tiny_model(0).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_the_codebook_is_the_vq_models(tiny_janus: Path) -> None:
    found = torch.from_numpy(policy.image_codebook(str(tiny_janus)))
    assert torch.equal(found, tiny_model(0).model.vqmodel.quantize.embedding.weight)


def test_what_is_trained_is_the_language_model_and_its_head(tiny_janus: Path) -> None:
    trained = policy.freeze(policy.load_model(str(tiny_janus)))
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in trained} == {
        "model.language_model",
        "lm_head.weight",
    }


def test_sharded_safetensors_and_bin_load(tiny_janus: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_janus / "model.safetensors")
    for kind in ("safetensors", "bin"):
        folder = tmp_path / kind
        shutil.copytree(tiny_janus, folder)
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        stem = "model" if kind == "safetensors" else "pytorch_model"
        weight_map = {}
        for shard, part in enumerate((names[::2], names[1::2])):
            file = f"{stem}-{shard}.{kind}"
            content = {name: tensors[name] for name in part}
            save_file(content, folder / file) if kind == "safetensors" else torch.save(content, folder / file)
            weight_map |= dict.fromkeys(part, file)
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        loaded = policy.load_state_dict(str(folder))
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_saved_policy_holds_the_trained_parameters_in_the_stored_dtype(tiny_janus: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_janus, half)
    save_file({k: v.half() for k, v in load_file(half / "model.safetensors").items()}, half / "model.safetensors")
    policy.save_policy(str(half), {"lm_head.weight": torch.ones(64, 64)}, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    assert bool((saved["lm_head.weight"] == 1).all())
    assert torch.equal(saved["model.language_model.norm.weight"], torch.ones(64, dtype=torch.float16))
    assert policy.load_tokenizer(str(tmp_path / "out")).eos_token_id == EOS


def test_a_policy_is_saved_without_being_built(
    tiny_janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Janus-Pro-7B that would be 30 GB, and minutes of drawing random numbers."""
    built = []
    save = JanusForConditionalGeneration.save_pretrained

    def spy(model: JanusForConditionalGeneration, *args: object, **options: object) -> None:
        built.append([name for name, parameter in model.named_parameters() if not parameter.is_meta])
        save(model, *args, **options)

    monkeypatch.setattr(JanusForConditionalGeneration, "save_pretrained", spy)
    policy.save_policy(str(tiny_janus), {}, tmp_path / "out")
    assert built == [[]]
    saved, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", tiny_janus))
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())


class _Exploit:
    def __reduce__(self):
        return (print, ("code from a checkpoint was run",))


def test_broken_checkpoints_get_one_line(tiny_janus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(tiny_janus, tmp_path / name))

    weights = (tiny_janus / "model.safetensors").read_bytes()
    (broken("truncated") / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (broken("empty") / "model.safetensors").write_bytes(b"")
    (broken("header") / "model.safetensors").write_bytes(b"\xff" * 64 + weights[64:])
    (broken("none") / "model.safetensors").unlink()
    (broken("config") / "config.json").write_text("{")
    (broken("other") / "config.json").write_text('{"model_type": "bert"}')
    tensors = load_file(tiny_janus / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.1" not in k}, broken("missing") / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.ones(3, 3)}, broken("shape") / "model.safetensors")
    (broken("pickle") / "model.safetensors").unlink()
    torch.save({"lm_head.weight": _Exploit()}, tmp_path / "pickle" / "pytorch_model.bin")
    for name in ("truncated", "empty", "header", "none", "config", "other", "missing", "shape", "pickle", "absent"):
        with pytest.raises(UserError, match="policy.path") as error:
            policy.load_model(str(tmp_path / name))
        assert "\n" not in str(error.value), name
    assert "was run" not in capsys.readouterr().out


ORIGINAL_NAMES = {
    "language_model.model.layers.3.self_attn.q_proj.weight": "model.language_model.layers.3.self_attn.q_proj.weight",
    "language_model.model.norm.weight": "model.language_model.norm.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "gen_embed.weight": "model.generation_embeddings.weight",
    "gen_head.output_mlp_projector.bias": "model.generation_head.proj_out.bias",
    "gen_head.vision_head.weight": "model.generation_head.vision_head.weight",
    "gen_aligner.layers.0.weight": "model.generation_aligner.fc1.weight",
    "gen_aligner.layers.2.bias": "model.generation_aligner.hidden_layers.0.bias",
    "aligner.layers.2.weight": "model.aligner.hidden_layers.0.weight",
    "vision_model.vision_tower.patch_embed.proj.bias": "model.vision_model.embeddings.patch_embedding.bias",
    "vision_model.vision_tower.norm.weight": "model.vision_model.post_layernorm.weight",
    "vision_model.vision_tower.blocks.7.norm1.bias": "model.vision_model.encoder.layers.7.layer_norm1.bias",
    "vision_model.vision_tower.blocks.7.attn.proj.weight": (
        "model.vision_model.encoder.layers.7.self_attn.projection_layer.weight"
    ),
    "vision_model.vision_tower.blocks.7.mlp.fc1.weight": "model.vision_model.encoder.layers.7.mlp.fc1.weight",
    "gen_vision_model.decoder.conv_blocks.1.res.0.norm1.weight": "model.vqmodel.decoder.up.1.block.0.norm1.weight",
    "gen_vision_model.encoder.conv_blocks.0.attn.1.proj_out.bias": "model.vqmodel.encoder.down.0.attn.1.proj_out.bias",
    "gen_vision_model.decoder.mid.1.q.weight": "model.vqmodel.decoder.mid.attn_1.q.weight",
    "gen_vision_model.quantize.embedding.weight": "model.vqmodel.quantize.embedding.weight",
    "vision_model.vision_tower.attn_pool.q.weight": None,
    "gen_vision_model.quantize.codebook_used": None,
}


@pytest.mark.parametrize(("original", "expected"), ORIGINAL_NAMES.items())
def test_original_names_map_to_transformers(original: str, expected: str | None) -> None:
    assert janus_layout.hf_name(original) == expected


def test_fused_attention_is_split_and_the_batch_axis_dropped() -> None:
    fused = torch.arange(18.0).view(9, 2)
    mapped = janus_layout.to_hf(
        {
            "vision_model.vision_tower.blocks.0.attn.qkv.weight": fused,
            "vision_model.vision_tower.pos_embed": torch.zeros(1, 4, 2),
        }
    )
    prefix = "model.vision_model.encoder.layers.0.self_attn."
    for row, part in enumerate(("q_proj", "k_proj", "v_proj")):
        assert torch.equal(mapped[f"{prefix}{part}.weight"], fused[3 * row : 3 * row + 3])
    assert mapped["model.vision_model.embeddings.position_embedding.weight"].shape == (4, 2)


@pytest.mark.parametrize(("language", "hidden", "layers"), [({"num_hidden_layers": 30}, 4096, 30)])
def test_the_original_configuration_describes_janus_pro(language: dict, hidden: int, layers: int) -> None:
    """The published config.json of Janus-Pro-7B, shortened to what is read; built without memory on `meta`."""
    raw = {
        "model_type": "multi_modality",
        "language_config": {"model_type": "llama", "vocab_size": 102400, "torch_dtype": "bfloat16", **language},
        "vision_config": {"params": {"image_size": 384, "model_name": "siglip_large_patch16_384"}},
        "aligner_config": {"params": {"depth": 2, "input_dim": 1024, "n_embed": hidden, "projector_type": "mlp_gelu"}},
        "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_aligner_config": {"params": {"depth": 2, "input_dim": 8, "n_embed": hidden}},
        "gen_head_config": {"params": {"image_token_embed": hidden, "image_token_size": 16384, "n_embed": hidden}},
    }
    config = janus_layout.hf_config(raw)
    with torch.device("meta"):
        model = policy.JanusForConditionalGeneration(config)
    assert policy.image_size(config) == (576, 384)
    assert config.text_config.num_hidden_layers == layers
    assert not config.tie_word_embeddings
    trained = sum(parameter.numel() for parameter in policy.freeze(model).values())
    assert trained == pytest.approx(6.91e9, rel=2e-3)  # language model with embeddings and head
    assert tuple(model.model.generation_head.vision_head.weight.shape) == (16384, hidden)
