"""Tokenizers of whole words in Hugging Face's own file format: of the shapes world's models, and of rehearsals."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""Of experts."""
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
"""Of Janus, which says so in its tokenizer: the text of a conversation, and what stands around an image."""


def janus_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Janus' control tokens and then these words, in id order; a text decodes with blanks between its words."""
    vocabulary = dict.fromkeys((*CONTROL.values(), *IMAGE_CONTROL.values(), *words))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, CONTROL["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **CONTROL, extra_special_tokens=IMAGE_CONTROL)


def word_tokenizer(
    vocabulary: Sequence[str] | Mapping[str, int], template: str = "[CLS] $A [SEP]"
) -> PreTrainedTokenizerFast:
    """A tokenizer of lower-cased words and punctuation marks.

    vocabulary: the words in id order, SPECIAL among them; or word -> id where ids are prescribed. template: what is put
    around a text, with $A for the text itself.
    """
    ids = dict(vocabulary) if isinstance(vocabulary, Mapping) else {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(word, ids[word]) for word in template.split() if word != "$A"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save_word_tokenizer(
    folder: Path, vocabulary: Sequence[str] | Mapping[str, int], **kwargs: str
) -> PreTrainedTokenizerFast:
    """Write the tokenizer's files into a checkpoint folder, where AutoTokenizer finds them offline."""
    tokenizer = word_tokenizer(vocabulary, **kwargs)
    tokenizer.save_pretrained(folder)
    return tokenizer
