"""Small tokenizers in the layouts that models are published with."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tiny_janus import EXTRA, SPECIAL

SENTENCES = ["two red apples left of a blue circle", "User: a photo of two red apples. Assistant: a red circle"] * 3


def write_byte_level(folder: Path, tokenizer_class: str, **settings: object) -> Tokenizer:
    """A byte-level `tokenizer.json` as DeepSeek's, and a `tokenizer_config.json` that names `tokenizer_class`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*SPECIAL.values(), *EXTRA]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": tokenizer_class, "add_bos_token": True, "legacy": True, **SPECIAL, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer
