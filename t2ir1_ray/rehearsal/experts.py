"""The folders of the recipes' experts with random weights, at their published sizes times a scale.

A kind of expert is a function that writes configuration, image processor and tokenizer as its published folder has
them. Sources: the config.json of microsoft/git-large-vqav2, Salesforce/blip-vqa-capfilt-large, CaraJ/ORM-T2I-R1 with
its vision tower, IDEA-Research/grounding-dino-tiny (the defaults of transformers), and open_clip's ViT-H-14.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
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

from rewards.orm import VISION_TOWERS
from t2ir1_ray.checkpoints.random_weights import mark_random
from t2ir1_ray.checkpoints.word_tokenizers import SPECIAL, save_word_tokenizer
from t2ir1_ray.rehearsal.sizes import times
from t2ir1_ray.storage import write_whole

ANSWERS = ("yes", "no", "?", ".")
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Of special tokens, which GroundingDINO has wired in."""


def write_hps(folder: Path, scale: float, words: Sequence[str]) -> None:
    """open_clip's own layout; its tokenizer comes with it."""
    config = open_clip.get_model_config("ViT-H-14")
    vision, text = config["vision_cfg"], config["text_cfg"]
    text_head = text["width"] // text["heads"]
    text["heads"] = times(text["heads"], scale)
    text["width"] = text_head * text["heads"]
    vision["width"] = times(vision["width"], scale, least=vision["head_width"], multiple=vision["head_width"])
    vision["image_size"] = times(vision["image_size"], scale, least=28, multiple=vision["patch_size"])
    vision["layers"], text["layers"] = times(vision["layers"], scale), times(text["layers"], scale)
    config["embed_dim"] = times(config["embed_dim"], scale, least=16)
    write_whole(folder / "open_clip_config.json", json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    mark_random(folder, lambda: open_clip.CLIP(**config))


def write_git(folder: Path, scale: float, words: Sequence[str]) -> None:
    side = times(480, scale, least=28, multiple=14) if scale != 1 else 480
    vision = {**_tower(1024, 24, 16, scale), "image_size": side, "patch_size": 14}
    size = times(30522, scale, least=1024)
    config = GitConfig(vision_config=vision, vocab_size=size, **_tower(768, 6, 12, scale), bos_token_id=2)
    config.eos_token_id = 3
    _save(folder, config, words, size)
    square = {"height": side, "width": side}
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square).save_pretrained(folder)
    mark_random(folder, lambda: GitForCausalLM(config))


def write_blip(folder: Path, scale: float, words: Sequence[str]) -> None:
    side = times(480, scale, least=32, multiple=16)
    vision = {**_tower(768, 12, 12, scale), "image_size": side, "patch_size": 16}
    size = times(30524, scale, least=1024)
    text = {**_tower(768, 12, 12, scale), "vocab_size": size, "encoder_hidden_size": vision["hidden_size"]}
    text |= {"bos_token_id": size - 1, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config=text, vision_config=vision)
    _save(folder, config, words, size - 1)
    BlipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    mark_random(folder, lambda: BlipForQuestionAnswering(config))


def write_grounding_dino(folder: Path, scale: float, words: Sequence[str]) -> None:
    own = GroundingDinoConfig(disable_custom_kernels=True)
    swin, bert = own.backbone_config, own.text_config
    heads = times(own.encoder_attention_heads, scale, least=2, multiple=2)  # the text's layers have half of them
    size = times(bert.vocab_size, scale, least=2048)
    first = times(swin.num_heads[0], scale)
    ffn = times(own.encoder_ffn_dim, scale, least=32)
    layers = times(own.encoder_layers, scale, least=2)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=swin.embed_dim // swin.num_heads[0] * first,
            depths=[times(depth, scale) for depth in swin.depths],
            num_heads=[first * 2**stage for stage in range(len(swin.num_heads))],
            out_features=swin.out_features,
        ),
        text_config=BertConfig(vocab_size=size, **_tower(768, 12, 12, scale)),
        num_queries=times(own.num_queries, scale, least=8),
        d_model=own.d_model // own.encoder_attention_heads * heads,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        disable_custom_kernels=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    free = [index for index in range(size) if index not in BERT_IDS.values()]
    save_word_tokenizer(folder, BERT_IDS | dict(zip(_plain(words), free, strict=False)))
    shortest, longest = times(800, scale, least=64), times(1333, scale, least=107)
    GroundingDinoImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest}).save_pretrained(folder)
    mark_random(folder, lambda: GroundingDinoForObjectDetection(config))


def write_orm(folder: Path, scale: float, words: Sequence[str]) -> None:
    """transformers' LLaVA-OneVision layout."""
    size = times(152064, scale, least=1024)
    groups = times(4, scale)
    heads = 7 * groups if scale == 1 else times(28, scale, least=2 * groups, multiple=groups)
    text = {
        "model_type": "qwen2",
        "vocab_size": size,
        "hidden_size": 128 * heads,
        "intermediate_size": times(18944, scale, least=128, multiple=64),
        "num_hidden_layers": times(28, scale, least=2),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
    }
    tower = dict(VISION_TOWERS["google/siglip-so400m-patch14-384"])
    width = tower["hidden_size"] // tower["num_attention_heads"]
    tower["num_attention_heads"] = times(tower["num_attention_heads"], scale)
    tower["hidden_size"] = width * tower["num_attention_heads"]
    tower["intermediate_size"] = times(tower["intermediate_size"], scale, least=32)
    tower["num_hidden_layers"] = times(tower["num_hidden_layers"], scale, least=2)
    tower["image_size"] = tower["image_size"] if scale == 1 else times(384, scale, least=28, multiple=14)
    config = LlavaOnevisionConfig(
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **tower},
        image_token_index=size - 2,
        video_token_index=size - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    _save(folder, config, words, size - 2)
    mark_random(folder, lambda: LlavaOnevisionForConditionalGeneration(config))


WRITERS: dict[str, Callable[[Path, float, Sequence[str]], None]] = {
    "hps": write_hps,
    "git": write_git,
    "blip": write_blip,
    "grounding_dino": write_grounding_dino,
    "orm": write_orm,
}
"""Kind of expert -> what writes its folder: (folder, scale, words that its tokenizer knows)."""


def _tower(hidden: int, layers: int, heads: int, scale: float) -> dict[str, int]:
    """A transformer with fewer heads of the same size and fewer layers."""
    fewer = times(heads, scale)
    return {
        "hidden_size": hidden // heads * fewer,
        "intermediate_size": 4 * (hidden // heads) * fewer,
        "num_hidden_layers": times(layers, scale, least=2),
        "num_attention_heads": fewer,
    }


def _save(folder: Path, config: GitConfig | BlipConfig | LlavaOnevisionConfig, words: Sequence[str], size: int) -> None:
    """config.json and a tokenizer of at most `size` words."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_word_tokenizer(folder, list(dict.fromkeys((*SPECIAL, *ANSWERS, *_plain(words))))[:size])


def _plain(words: Sequence[str]) -> list[str]:
    """Lower-cased, as the experts' tokenizers read texts, without what has an id already."""
    lower = dict.fromkeys((*ANSWERS, *(word.lower() for word in words)))
    return [word for word in lower if word not in BERT_IDS]
