"""Small random Janus checkpoints in the real formats."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

SPECIAL = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "unk_token": "<unk>",
}
EXTRA = ["<begin_of_image>", "<end_of_image>", "<image_placeholder>"]
WORDS = "User : Assistant . , a red green blue circle square two left of the upper lower".split()
VOCABULARY = 64
IMAGE_TOKENS = 36
IMAGE_CODES = 64


def tiny_config(layers: int = 2, hidden: int = 64, kv_heads: int = 1) -> JanusConfig:
    """Grouped-query attention and an odd number of special ids, so that shortcuts in the code under test show."""
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,  # vLLM's CPU attention knows head sizes from 32
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=24,
        patch_size=4,
        mlp_ratio=2.0,
        projection_dim=hidden,
        num_image_tokens=IMAGE_TOKENS,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=IMAGE_CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=0,
        num_patches=6,
        projection_dim=hidden,
        image_token_embed_dim=hidden,
    )
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=6, tie_word_embeddings=False
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *EXTRA, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    fast.add_special_tokens({"additional_special_tokens": EXTRA})
    return fast


def tiny_model(seed: int = 0, scale: float = 4.0, **sizes: int) -> JanusForConditionalGeneration:
    """Random weights, `scale` times the usual spread: distributions far from uniform, so that mistakes show."""
    torch.manual_seed(seed)
    model = JanusForConditionalGeneration(tiny_config(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "vqmodel" not in name:
                parameter.mul_(scale)
    return model


def write_tiny_janus(folder: Path, seed: int = 0, **sizes: int) -> Path:
    tiny_model(seed, **sizes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
