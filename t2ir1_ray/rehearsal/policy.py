"""The folder of a Janus policy with random weights: its configuration, reduced if asked, and a tokenizer."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from transformers import JanusConfig, JanusForConditionalGeneration

from t2ir1_ray.checkpoints.random_weights import mark_random
from t2ir1_ray.checkpoints.word_tokenizers import IMAGE_CONTROL, janus_tokenizer
from t2ir1_ray.rehearsal.sizes import times


def write_policy(folder: Path, config: JanusConfig, words: Sequence[str]) -> None:
    """words: what the tokenizer knows first; its vocabulary is filled up with made-up ones, so that every token that
    the policy writes is a word again when its image is drawn."""
    config = deepcopy(config)
    size = config.text_config.vocab_size
    tokenizer = janus_tokenizer([*words, *(f"w{number}" for number in range(size))][: size - 7])
    text = config.text_config
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_CONTROL["image_token"])
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mark_random(folder, lambda: JanusForConditionalGeneration(config))


def scaled_janus(config: JanusConfig, scale: float) -> JanusConfig:
    """The same architecture with fewer heads of the same size, layers, words, codes and image patches."""
    config = deepcopy(config)
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    shared = text.num_attention_heads // text.num_key_value_heads
    head_dim = text.hidden_size // text.num_attention_heads
    text.num_key_value_heads = times(text.num_key_value_heads, scale, least=2)
    text.num_attention_heads = shared * text.num_key_value_heads
    text.hidden_size, text.head_dim = head_dim * text.num_attention_heads, head_dim
    text.intermediate_size = times(text.intermediate_size, scale, least=64, multiple=64)
    text.num_hidden_layers = times(text.num_hidden_layers, scale, least=2)
    text.vocab_size = times(text.vocab_size, scale, least=4096)
    grid, patch = times(vq.num_patches, scale, least=4), vision.patch_size
    width = vision.hidden_size // vision.num_attention_heads
    vision.num_attention_heads = times(vision.num_attention_heads, scale)
    vision.hidden_size = width * vision.num_attention_heads
    vision.num_hidden_layers = times(vision.num_hidden_layers, scale)
    vision.image_size, vision.num_image_tokens = grid * patch, grid * grid
    vq.num_patches = grid
    vq.num_embeddings = times(vq.num_embeddings, scale, least=64)
    vq.base_channels = times(vq.base_channels, scale, least=32, multiple=32)
    vq.latent_channels = times(vq.latent_channels, scale, least=32, multiple=32)
    vision.projection_dim = vq.projection_dim = vq.image_token_embed_dim = text.hidden_size
    return config
