"""GIT as a visual question answering expert: is each object of the prompt in the image?

Paper: arXiv 2205.14100. Weights: `microsoft/git-large-vqav2`. The protocol is T2I-R1's: for every object the text
"[CLS] {object}?" without [SEP], and p(yes) / (p(yes) + p(no)) at the next position; the score is the mean.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, GitForCausalLM

from rewards import vqa
from rewards.base import Row


class GitExpert(vqa.VqaExpert):
    """Share of the prompt's objects that GIT sees, in 0..1."""

    name = "git"
    model_class = GitForCausalLM
    image_processor_class = CLIPImageProcessorPil

    def score_batch(self, prepared: list[Tensor], rows: list[Row]) -> np.ndarray:
        objects = [vqa.objects_of(row) for row in rows]
        scores = np.ones(len(rows), np.float32)  # officially nothing to ask means nothing is wrong
        asked = [index for index, names in enumerate(objects) if names]
        if asked:
            answers = self.ask([prepared[i] for i in asked], [[f"{name}?" for name in objects[i]] for i in asked])
            scores[asked] = [answer.mean().item() for answer in answers]
        return scores

    @torch.inference_mode()
    def ask(self, images: list[Tensor], questions: list[list[str]]) -> list[Tensor]:
        """p(yes) for every question of every prepared image, each encoded once; none may go without a question."""
        most = max(map(len, questions))
        # GIT tiles the image features over the text rows, so row r sees image r % N: rows go question by question.
        # An image with fewer questions repeats its first one.
        rows = [own[k] if k < len(own) else own[0] for k in range(most) for own in questions]
        input_ids, mask, last = self._encode(rows)
        logits = self.model(
            pixel_values=torch.stack(images).to(self.device, self.dtype),
            input_ids=input_ids,
            attention_mask=mask,
            use_cache=False,
            logits_to_keep=input_ids.shape[1],
        ).logits
        answer = vqa.yes_probability(logits[torch.arange(len(rows)), last], self.yes_no).view(most, len(images)).cpu()
        return [answer[: len(own), index] for index, own in enumerate(questions)]

    def _encode(self, questions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Right-padded ids (R, L), mask (R, L) and the position of each last token (R,)."""
        texts = self.tokenizer(questions, add_special_tokens=False).input_ids
        limit = self.model.config.max_position_embeddings - 1
        encoded = [torch.tensor([self.tokenizer.cls_token_id, *ids[:limit]]) for ids in texts]
        lengths = torch.tensor([len(ids) for ids in encoded], device=self.device)
        input_ids = torch.nn.utils.rnn.pad_sequence(
            encoded, batch_first=True, padding_value=self.tokenizer.pad_token_id
        ).to(self.device)
        mask = (torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]).long()
        return input_ids, mask, lengths - 1
