"""Janus looks at images and answers questions about them, through transformers' own understanding path."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationMixin, JanusConfig, JanusImageProcessor

from t2ir1_ray.checkpoints.folder import refuse, resolve_checkpoint
from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.errors import UserError
from t2ir1_ray.janus.policy import IMAGE, PromptFormat, load_config, load_model, load_tokenizer

MAX_NEW_TOKENS = 32
"""Of an answer; yes or no stands in its first sentence."""
IMAGE_FILES = ("processor_config.json", "preprocessor_config.json")
"""Either says how images are scaled: transformers' newer layout, and that of DeepSeek's own checkpoints."""


class Answerer:
    """A checkpoint in evaluation mode. Greedy: an answer depends on image and question alone."""

    def __init__(self, policy: PolicyConfig, device: str = "cpu"):
        """Raises UserError if the checkpoint is bad, or does not say how images are to be scaled."""
        config = load_config(policy.path)
        self.form = PromptFormat(load_tokenizer(policy.path), policy)
        self.image_tokens = count_image_tokens(config)
        self.scale = load_image_processor(policy.path, config)
        if self.form.tokenizer.convert_tokens_to_ids(IMAGE) != config.image_token_id:
            raise UserError(
                f"policy.path: {policy.path}: image_token_id={config.image_token_id} of its config.json is not the "
                f"token {IMAGE} of its tokenizer: download it again"
            )
        self.model = load_model(policy.path, policy.dtype, device)

    @torch.inference_mode()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        """What is said to each question about its image. images: (H, W, 3) uint8 of any size."""
        rows = [torch.tensor(self.form.question_ids(question, self.image_tokens)) for question in questions]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.form.pad_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        pixels = self.scale(list(images), input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        said = GenerationMixin.generate(  # what Janus' own calls for text, with two warnings about its own arguments
            self.model,
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            pixel_values=pixels.to(self.model.device, self.model.dtype),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=self.form.eos_id,
            pad_token_id=self.form.pad_id,
        )
        return [self.form.plan_text(row) for row in said[:, ids.shape[1] :].tolist()]


def count_image_tokens(config: JanusConfig) -> int:
    """Of an image that the policy looks at: its patches."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def load_image_processor(path: str, config: JanusConfig) -> JanusImageProcessor:
    """How the checkpoint scales images, to the size that its vision tower takes."""
    folder: Path = resolve_checkpoint(path, "policy.path")
    if not any((folder / name).is_file() for name in IMAGE_FILES):
        raise UserError(
            f"policy.path: {path} has neither {' nor '.join(IMAGE_FILES)}: nothing says how it sees images: "
            "copy the one of the checkpoint it was made from"
        )
    side = config.vision_config.image_size
    with refuse(f"policy.path: {path}: its image processor cannot be read"):
        return JanusImageProcessor.from_pretrained(folder, local_files_only=True, size={"height": side, "width": side})
