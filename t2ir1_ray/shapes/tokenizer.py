"""The shapes policy's tokenizer: whole words, in Hugging Face's file format, with Janus' control tokens."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from t2ir1_ray.shapes.prompts import prompt_words
from t2ir1_ray.shapes.world import COLUMNS, ROWS

CONTROL = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "unk_token": "<unk>",
}
IMAGE_CONTROL = ("<begin_of_image>", "<end_of_image>", "<image_placeholder>")
VOCABULARY_SIZE = 64


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """Words of prompts, plans and the conversation format; text decodes with blanks, which plans do not mind."""
    words = (*CONTROL.values(), *IMAGE_CONTROL, "User", "Assistant", ":", ".", ",", *prompt_words(), *ROWS, *COLUMNS)
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    assert len(vocabulary) <= VOCABULARY_SIZE
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=CONTROL["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **CONTROL)
    fast.add_special_tokens({"additional_special_tokens": list(IMAGE_CONTROL)})
    return fast
