"""The shapes policy's tokenizer and processor: whole words, Hugging Face's file formats, Janus' control tokens."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import JanusImageProcessor, JanusProcessor, PreTrainedTokenizerFast

from t2ir1_ray.shapes.prompts import prompt_words
from t2ir1_ray.shapes.world import COLUMNS, ROWS

CONTROL = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "unk_token": "<unk>",
}
IMAGE_CONTROL = {
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_placeholder>",
}
VOCABULARY_SIZE = 64


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """Words of prompts, plans and the conversation format; text decodes with blanks, which plans do not mind."""
    words = (
        *CONTROL.values(),
        *IMAGE_CONTROL.values(),
        "User",
        "Assistant",
        ":",
        ".",
        ",",
        *prompt_words(),
        *ROWS,
        *COLUMNS,
    )
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    assert len(vocabulary) <= VOCABULARY_SIZE
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=CONTROL["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **CONTROL, extra_special_tokens=IMAGE_CONTROL)


def policy_processor(side: int, tokens: int) -> JanusProcessor:
    """What transformers' own Janus code expects beside the weights. side: pixels; tokens: codes of one image."""
    images = JanusImageProcessor(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return JanusProcessor(images, policy_tokenizer(), num_image_tokens=tokens)
