"""BLIP as the visual question answering expert: the alternative to GIT, with the question form of T2I-CompBench.

Paper: arXiv 2201.12086. Weights: `Salesforce/blip-vqa-base`. For every object of the prompt "{object}?" goes through
the question encoder, and one decoder step gives p(yes) / (p(yes) + p(no)); the score is the mean over the objects.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering, BlipImageProcessorPil

from rewards import vqa
from rewards.base import Row


class BlipExpert(vqa.VqaExpert):
    """Share of the prompt's objects that BLIP sees, in 0..1."""

    name = "blip"
    model_class = BlipForQuestionAnswering
    image_processor_class = BlipImageProcessorPil

    @torch.inference_mode()
    def score_batch(self, prepared: list[Tensor], rows: list[Row]) -> np.ndarray:
        asked = [(index, f"{name}?") for index, row in enumerate(rows) for name in vqa.objects_of(row)]
        scores = np.ones(len(rows), np.float32)  # nothing to ask means nothing is wrong
        if not asked:
            return scores
        pixels = torch.stack(prepared)
        features = self.model.vision_model(pixel_values=pixels.to(self.device, self.dtype)).last_hidden_state
        image_of = torch.tensor([index for index, _ in asked])
        answers = self._answers(features, image_of, [question for _, question in asked])
        for index in image_of.unique().tolist():
            scores[index] = answers[image_of == index].mean().item()
        return scores

    def _answers(self, features: Tensor, image_of: Tensor, questions: list[str]) -> Tensor:
        """p(yes) of every question, (Q,). features: (N, P, D); image_of: (Q,) which image a question is about.

        Questions are grouped by length and never padded: the decoder of transformers 5.19 drops the mask of its
        cross-attention, so padding would shift the answers by about 0.002.
        """
        encoded = self.tokenizer(questions, truncation=True, max_length=self._longest_question).input_ids
        lengths = torch.tensor([len(ids) for ids in encoded])
        answers = torch.empty(len(questions))
        for length in lengths.unique():
            members = (lengths == length).nonzero().flatten()
            input_ids = torch.tensor([encoded[i] for i in members.tolist()], device=self.device)
            hidden = self.model.text_encoder(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                encoder_hidden_states=features[image_of[members].to(features.device)],
            ).last_hidden_state
            first = torch.full((len(members), 1), self.model.decoder_start_token_id, device=self.device)
            logits = self.model.text_decoder(input_ids=first, encoder_hidden_states=hidden).logits[:, -1]
            answers[members] = vqa.yes_probability(logits, self.yes_no).cpu()
        return answers

    @property
    def _longest_question(self) -> int:
        return self.model.config.text_config.max_position_embeddings
