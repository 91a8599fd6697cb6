"""The shapes policy's tokenizer and processor: whole words, Hugging Face's file formats, Janus' control tokens."""

from transformers import JanusImageProcessor, JanusProcessor, PreTrainedTokenizerFast

from t2ir1_ray.checkpoints.word_tokenizers import janus_tokenizer
from t2ir1_ray.shapes.prompts import prompt_words
from t2ir1_ray.shapes.questions import question_words
from t2ir1_ray.shapes.world import COLUMNS, ROWS

VOCABULARY_SIZE = 64


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """Words of prompts, plans, questions and the conversation format; text decodes with blanks, which plans bear."""
    words = (*prompt_words(), *ROWS, *COLUMNS, *question_words())
    tokenizer = janus_tokenizer(("User", "Assistant", ":", ".", ",", *words))
    assert len(tokenizer) <= VOCABULARY_SIZE
    return tokenizer


def policy_processor(side: int, tokens: int) -> JanusProcessor:
    """What transformers' own Janus code expects beside the weights. side: pixels; tokens: codes of one image."""
    images = JanusImageProcessor(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return JanusProcessor(images, policy_tokenizer(), num_image_tokens=tokens)
