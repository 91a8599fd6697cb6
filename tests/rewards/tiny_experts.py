"""Tiny expert checkpoints with random weights in the formats of the published ones, for the real loaders to open."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SwinConfig,
)

from t2ir1_ray.checkpoints.word_tokenizers import SPECIAL, save_word_tokenizer

WORDS = [
    *SPECIAL,
    "yes",
    "no",
    "?",
    ".",
    "a",
    "red",
    "blue",
    "cat",
    "dog",
    "sports",
    "ball",
    "roll",
    "of",
    "paper",
    "towel",
    "[EOT]",
]

ROWS = [
    {"prompt": "a red cat", "task_type": "color", "nouns": ["cat"], "attr_nouns": ["red cat"]},
    {
        "prompt": "a cat and a roll of paper towel",
        "task_type": "object",
        "nouns": ["cat", "roll of paper towel", "dog"],
    },
    {"prompt": "a red cat", "task_type": "color", "nouns": ["cat"], "attr_nouns": ["red cat"]},
    {
        "prompt": "a blue sports ball on a red dog",
        "task_type": "complex",
        "nouns": ["sports ball", "dog"],
        "attr_nouns": None,
    },
    {"prompt": "nothing", "task_type": "non", "nouns": [], "attr_nouns": None},
    {
        "prompt": "a cat left of a dog",
        "task_type": "spatial",
        "nouns": ["cat", "dog"],
        "spatial_info": {"obj1": "cat", "obj2": "dog", "locality": "left of"},
    },
    {"prompt": "two dogs", "task_type": "numeracy", "nouns": ["dog"], "numeracy_info": [{"obj_name": "dog", "num": 2}]},
]


def random_images(count: int, height: int = 40, width: int = 40, seed: int = 0) -> np.ndarray:
    """(count, H, W, 3) uint8: blurred noise, so that resizing matters but does not average everything away."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(-(-height // 8), 1).repeat(-(-width // 8), 2)[:, :height, :width]


def shake(model: torch.nn.Module, scale: float) -> torch.nn.Module:
    """Add noise to every weight, so that no score is near a constant."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def write_open_clip_folder(folder: Path) -> Path:
    """open_clip's local folder: open_clip_config.json, open_clip_model.safetensors, a Hugging Face tokenizer."""
    torch.manual_seed(0)
    save_word_tokenizer(folder, WORDS, template="[CLS] $A [EOT]")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": len(WORDS),
            "width": 32,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": "local",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model = shake(open_clip.create_model(f"local-dir:{folder}", load_weights=False), 0.02)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_git_folder(folder: Path) -> Path:
    """The layout of microsoft/git-large-vqav2: config.json, model.safetensors, preprocessor_config.json, tokenizer."""
    torch.manual_seed(1)
    save_word_tokenizer(folder, WORDS)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GitConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        **vision,
        vocab_size=len(WORDS),
        max_position_embeddings=32,
        bos_token_id=WORDS.index("[CLS]"),
        eos_token_id=WORDS.index("[SEP]"),
    )
    shake(GitForCausalLM(config), 0.2).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


ORM_VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
ORM_TEXT = {
    "vocab_size": len(WORDS) + 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}


def write_orm_folder(folder: Path) -> Path:
    """transformers' LLaVA-OneVision layout."""
    torch.manual_seed(2)
    save_word_tokenizer(folder, WORDS)
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **ORM_TEXT},
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **ORM_VISION},
        image_token_index=len(WORDS),
        video_token_index=len(WORDS) + 7,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    shake(LlavaOnevisionForConditionalGeneration(config), 0.2).save_pretrained(folder)
    return folder


def write_llava_next_folder(folder: Path, same_as: Path) -> Path:
    """The layout of CaraJ/ORM-T2I-R1: a llava_qwen config.json and LLaVA-NeXT's weight names."""
    save_word_tokenizer(folder, WORDS)
    vision = {"mm_vision_tower": "tiny", "vision_config": ORM_VISION}
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_qwen", **ORM_TEXT, **vision}))
    renames = {
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.language_model.": "model.",
    }
    weights = {}
    for name, tensor in LlavaOnevisionForConditionalGeneration.from_pretrained(same_as).state_dict().items():
        prefix = next((old for old in renames if name.startswith(old)), "")
        weights[renames.get(prefix, "") + name.removeprefix(prefix)] = tensor.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_bert_tokenizer(folder: Path) -> None:
    """The words under BERT's ids of the special tokens, which GroundingDINO has wired in."""
    plain = [word for word in WORDS if word not in (*SPECIAL, "?", ".")]
    ids = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    save_word_tokenizer(folder, ids | {word: i + 1 for i, word in enumerate(plain)})


def write_grounding_dino_folder(folder: Path) -> Path:
    """The layout of IDEA-Research/grounding-dino-tiny."""
    torch.manual_seed(3)
    save_bert_tokenizer(folder)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
            out_features=["stage1", "stage2"],
        ),
        text_config=BertConfig(
            vocab_size=1030,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        ),
        num_queries=6,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_n_points=2,
        decoder_n_points=2,
        num_feature_levels=2,
        max_text_len=48,
        disable_custom_kernels=True,
    )
    shake(GroundingDinoForObjectDetection(config), 0.1).save_pretrained(folder)
    GroundingDinoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return folder


def write_blip_folder(folder: Path) -> Path:
    """The layout of Salesforce/blip-vqa-base."""
    torch.manual_seed(4)
    save_word_tokenizer(folder, WORDS)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **tower,
        "encoder_hidden_size": 32,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 32,
        "bos_token_id": WORDS.index("[EOT]"),
        "eos_token_id": WORDS.index("[SEP]"),
        "sep_token_id": WORDS.index("[SEP]"),
        "pad_token_id": 0,
        "projection_dim": 16,
    }
    vision = {**tower, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    shake(BlipForQuestionAnswering(config), 0.2).save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
