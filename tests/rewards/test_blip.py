"""BLIP: its answers equal transformers' own generation, alone and batched."""

import numpy as np
import pytest
import torch

from rewards import load_expert
from tests.rewards.tiny_experts import ROWS, random_images

IMAGES = random_images(len(ROWS))


@pytest.fixture(scope="module")
def expert(blip_folder):
    return load_expert("blip", str(blip_folder))


def generated(expert, image, name):
    """p(yes) / (p(yes) + p(no)) of the first token that `generate` would choose from."""
    question = expert.tokenizer(f"{name}?", return_tensors="pt")
    output = expert.model.generate(
        input_ids=question.input_ids,
        attention_mask=question.attention_mask,
        pixel_values=expert.image_processor(images=image, return_tensors="pt").pixel_values,
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    p = output.logits[0][0].softmax(-1)
    yes, no = expert.tokenizer.convert_tokens_to_ids(["yes", "no"])
    return (p[yes] / (p[yes] + p[no])).item()


def test_scores_equal_one_question_at_a_time(expert):
    result = expert.score(IMAGES, ROWS)
    assert result.status == ["ok"] * 5 + ["na", "na"]
    objects = [["red cat"], ["cat", "roll of paper towel", "dog"], ["red cat"], ["sports ball", "dog"]]
    with torch.no_grad():
        expected = [
            np.mean([generated(expert, image, n) for n in names])
            for image, names in zip(IMAGES[:4], objects, strict=True)
        ]
    assert result.scores[:4] == pytest.approx(expected, abs=1e-5)
    assert result.scores[4] == 1.0
    assert np.std(expected) > 1e-3


def test_batched_equals_single(expert):
    single = [expert.score(IMAGES[i : i + 1], ROWS[i : i + 1]).scores[0] for i in range(5)]
    assert expert.score(IMAGES, ROWS).scores[:5] == pytest.approx(single, abs=1e-5)
