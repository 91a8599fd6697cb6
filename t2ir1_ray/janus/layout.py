"""DeepSeek's original Janus-Pro layout (`model_type: multi_modality`) under transformers' names and configuration.

Mapped weights give bit-identical image logits, text logits and decoded pixels. The original's `attn_pool` of the
vision tower and the usage buffer of the VQ model have no counterpart and are not needed. Also here: which of
transformers' weights of the language model an engine keeps as one.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import JanusConfig

from t2ir1_ray.errors import UserError

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Linear layers of the language model that engines keep as one, with its rows in this order."""
_DROPPED = re.compile(r"vision_model\.vision_tower\.attn_pool\.|gen_vision_model\.quantize\.codebook_used$")
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^gen_embed\.", "model.generation_embeddings."),
        (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
        (r"^gen_head\.vision_head\.", "model.generation_head.vision_head."),
        (r"^gen_aligner\.layers\.0\.", "model.generation_aligner.fc1."),
        (r"^gen_aligner\.layers\.2\.", "model.generation_aligner.hidden_layers.0."),
        (r"^aligner\.layers\.0\.", "model.aligner.fc1."),
        (r"^aligner\.layers\.2\.", "model.aligner.hidden_layers.0."),
        (r"^vision_model\.vision_tower\.pos_embed$", "model.vision_model.embeddings.position_embedding.weight"),
        (r"^vision_model\.vision_tower\.patch_embed\.proj\.", "model.vision_model.embeddings.patch_embedding."),
        (r"^vision_model\.vision_tower\.norm\.", "model.vision_model.post_layernorm."),
        (r"^vision_model\.vision_tower\.blocks\.", "model.vision_model.encoder.layers."),
        (r"\.norm([12])\.", r".layer_norm\1."),
        (r"(model\.vision_model\..*)\.attn\.proj\.", r"\1.self_attn.projection_layer."),
        (r"(model\.vision_model\..*)\.attn\.", r"\1.self_attn."),
        (r"^gen_vision_model\.", "model.vqmodel."),
        (r"\.decoder\.conv_blocks\.", ".decoder.up."),
        (r"\.encoder\.conv_blocks\.", ".encoder.down."),
        (r"\.mid\.0\.", ".mid.block_1."),
        (r"\.mid\.1\.", ".mid.attn_1."),
        (r"\.mid\.2\.", ".mid.block_2."),
        (r"(model\.vqmodel\..*)\.res\.", r"\1.block."),
    )
)


def hf_name(name: str) -> str | None:
    """transformers' name of an original tensor (`qkv` still fused); None for one that is not needed."""
    if _DROPPED.search(name):
        return None
    vq = name.startswith("gen_vision_model.")
    for pattern, replacement in _RULES:
        if vq and "layer_norm" in replacement:
            continue  # the VQ model's own norm1/norm2 keep their names
        name = pattern.sub(replacement, name)
    return name


def fused_with(name: str) -> tuple[str, tuple[str, ...]]:
    """(name of the weight that an engine makes of a parameter, names of all parameters that are part of it, in order).

    Who changes one of those must give an engine all of them: it builds the weight anew.
    """
    layer, _, kind = name.rpartition(".")
    parent, _, leaf = layer.rpartition(".")
    for fused, parts in FUSED.items():
        if leaf in parts:
            return f"{parent}.{fused}.{kind}", tuple(f"{parent}.{part}.{kind}" for part in parts)
    return name, (name,)


def to_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original state dict -> transformers' state dict (fused qkv split, position embedding without batch axis).

    Raises UserError if a fused tensor is not three of a kind.
    """
    out: dict[str, Tensor] = {}
    for original, tensor in tensors.items():
        name = hf_name(original)
        if name is None:
            continue
        if ".self_attn.qkv." in name:
            if tensor.ndim == 0 or tensor.shape[0] % 3 or not len(tensor):
                raise UserError(f"policy.path: {original} has the shape {tuple(tensor.shape)}: not q, k and v in one")
            for part, chunk in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3, 0), strict=True):
                out[name.replace("qkv", part)] = chunk
        elif name.endswith("position_embedding.weight"):
            out[name] = tensor.squeeze(0)
        else:
            out[name] = tensor
    return out


def hf_config(raw: Mapping[str, Any]) -> JanusConfig:
    """transformers' configuration from an original `config.json`; sizes that it does not spell out are Janus-Pro's.

    `tie_word_embeddings` must be False: JanusConfig's default is True and would overwrite the embeddings on loading.
    """
    text = {"max_position_embeddings": 16384, **raw["language_config"], "tie_word_embeddings": False}
    text = {
        key: value for key, value in text.items() if key not in ("architectures", "torch_dtype", "_attn_implementation")
    }
    text.setdefault("hidden_size", 4096)
    hidden = text["hidden_size"]
    vision = raw["vision_config"]["params"]
    image_size = vision.get("image_size", 384)
    head, aligner = raw["gen_head_config"]["params"], raw["gen_aligner_config"]["params"]
    return JanusConfig(
        text_config={"model_type": "llama", **text},
        vision_config={
            "hidden_size": raw["aligner_config"]["params"]["input_dim"],
            "num_hidden_layers": vision.get("layers", 24),
            "num_attention_heads": vision.get("heads", 16),
            "image_size": image_size,
            "patch_size": vision.get("patch_size", 16),
            "mlp_ratio": vision.get("mlp_ratio", 4.0),
            "projection_dim": hidden,
            "depth": raw["aligner_config"]["params"]["depth"],
            "num_image_tokens": (image_size // vision.get("patch_size", 16)) ** 2,
        },
        vq_config={
            "embed_dim": raw["gen_vision_config"]["params"]["n_embed"],
            "num_embeddings": raw["gen_vision_config"]["params"]["image_token_size"],
            "projection_dim": aligner["n_embed"],
            "num_hidden_layers": aligner["depth"],
            "image_token_embed_dim": head["image_token_embed"],
        },
        image_token_id=100581,
        tie_word_embeddings=False,
    )
