"""Sizes of the published models that the recipes name, for when their checkpoints are not here."""

from transformers import JanusConfig

from t2ir1_ray.janus import layout as janus_layout


def published(path: str) -> JanusConfig | None:
    """Configuration of Janus-Pro-1B or -7B by the name that `path` ends in, for when the checkpoint is not here."""
    text = {
        "janus-pro-1b": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
        },
        "janus-pro-7b": {"hidden_size": 4096, "num_hidden_layers": 30},
    }.get(path.rstrip("/").rsplit("/", 1)[-1].lower())
    if text is None:
        return None
    hidden = text["hidden_size"]
    return janus_layout.hf_config(
        {
            "language_config": {"vocab_size": 102400, **text},
            "vision_config": {"params": {}},
            "aligner_config": {"params": {"depth": 2, "input_dim": 1024}},
            "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
            "gen_aligner_config": {"params": {"depth": 2, "n_embed": hidden}},
            "gen_head_config": {"params": {"image_token_embed": hidden}},
        }
    )


def published_parameters(path: str) -> int | None:
    """Of the recipe's expert models by the name that `path` ends in, for when the checkpoint is not here."""
    return {
        "hps_v2.1_compressed.pt": 986_000_000,
        "git-large-vqav2": 395_000_000,
        "blip-vqa-capfilt-large": 361_000_000,
        "grounding-dino-tiny": 172_000_000,
        "yolov8x-worldv2.pt": 73_000_000,
        "orm-t2i-r1": 8_030_000_000,
    }.get(path.rstrip("/").rsplit("/", 1)[-1].lower())
