"""GroundingDINO: the mended numbers, the caption, the phrase scores, and batching."""

import numpy as np
import pytest
import torch
import transformers.models.grounding_dino.modeling_grounding_dino as upstream
from PIL import Image

from rewards import NonFiniteScore, load_expert
from rewards.detection import detection_score
from rewards.grounding_dino import caption_of, mend_transformers, phrase_masks_and_positions, token_weights
from t2ir1_ray.errors import UserError
from tests.rewards.tiny_experts import ROWS, random_images

IMAGES = [*random_images(4, 32, 32), *random_images(3, 40, 56, seed=1)]
NOUNS = [row["nouns"] or ["cat"] for row in ROWS]


@pytest.fixture(scope="module")
def expert(grounding_dino_folder):
    return load_expert("grounding_dino", str(grounding_dino_folder), box_threshold=0.5)


def test_batched_equals_single(expert):
    batched = expert.detect(IMAGES, NOUNS)
    single = [expert.detect([image], [nouns])[0] for image, nouns in zip(IMAGES, NOUNS, strict=True)]
    assert sum(map(len, batched)) > 10
    for many, one in zip(batched, single, strict=True):
        assert [(d.noun, d.phrase) for d in many] == [(d.noun, d.phrase) for d in one]
        assert np.array([d.box for d in many]) == pytest.approx(np.array([d.box for d in one]), abs=1e-5)
        assert [d.score for d in many] == pytest.approx([d.score for d in one], abs=1e-5)


def test_scores_follow_the_detections(expert):
    result = expert.score(IMAGES, ROWS)
    assert result.status == ["ok"] * len(ROWS)
    found = expert.detect(IMAGES, NOUNS)
    expected = [detection_score(row, found[i]) if row["nouns"] else 1.0 for i, row in enumerate(ROWS)]
    assert result.scores == pytest.approx(expected, abs=1e-6)


def test_a_phrase_scores_the_mean_of_its_tokens(expert):
    """The score of "sports ball" for one query, from raw logits."""
    image, nouns = IMAGES[0], ["cat", "sports ball"]
    tokens = expert.tokenizer("cat . sports ball.", return_tensors="pt")
    pixels = expert.image_processor(images=image, return_tensors="pt").pixel_values
    with torch.no_grad():
        probabilities = expert.model(pixel_values=pixels, input_ids=tokens.input_ids).logits.sigmoid()[0]
    ids = tokens.input_ids[0].tolist()
    columns = [ids.index(expert.tokenizer.convert_tokens_to_ids(word)) for word in ("sports", "ball")]
    expected = probabilities[:, columns].mean(1)
    found = [d.score for d in expert.detect([image], [nouns])[0] if d.noun == "sports ball"]
    assert found == pytest.approx([p for p in expected.tolist() if p > 0.5], abs=1e-5)


def test_official_mode_marks_first_and_last_word():
    nouns = ["roll of paper towel", "cat"]
    assert caption_of(nouns).text == "roll of paper towel . cat."
    assert caption_of(nouns).spans == [[(0, 19)], [(22, 25)]]
    assert caption_of(nouns, whole_nouns=False).spans == [[(0, 4), (14, 19)], [(22, 25), (22, 25)]]


def test_captions_of_odd_nouns():
    caption = caption_of(["  Sports   BALL. ", "", "what?"])
    assert caption.text == "sports ball .  . what."
    assert [caption.text[a:b] for spans in caption.spans for a, b in spans] == ["sports ball", "what"]
    offsets = torch.tensor([[0, 0], [0, 6], [7, 11], [12, 13], [0, 0]])
    weights = token_weights(caption, offsets)
    assert weights[0].tolist() == pytest.approx([0, 0.5, 0.5, 0, 0], abs=1e-5)
    assert weights[1:].abs().max() == 0  # nothing to find, and cut off


def test_a_thousand_nouns_are_cut_at_the_text_limit(expert):
    row = {"prompt": "many", "task_type": "object", "nouns": [f"cat {i}" for i in range(1000)]}
    score = expert.score([IMAGES[0]], [row]).scores[0]
    assert 0 <= score < 0.05


def test_text_positions_are_those_of_the_original():
    ids = torch.tensor([[101, 7, 8, 1012, 9, 1012, 102], [101, 7, 1012, 102, 0, 0, 0]])
    mask, positions = phrase_masks_and_positions(ids)
    assert positions.tolist() == [[0, 0, 1, 2, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0]]
    assert mask[0, 1].tolist() == [False, True, True, True, False, False, False]
    assert mask[1].sum() == 7 + 2


def test_mending_is_checked_by_value_and_idempotent(monkeypatch):
    mend_transformers()
    functions = (
        upstream.generate_masks_with_special_tokens_and_transfer_map,
        upstream.GroundingDinoEncoderLayer.get_text_position_embeddings,
    )
    mend_transformers()
    assert functions == (
        upstream.generate_masks_with_special_tokens_and_transfer_map,
        upstream.GroundingDinoEncoderLayer.get_text_position_embeddings,
    )
    layer = upstream.GroundingDinoEncoderLayer
    embedding = layer.get_text_position_embeddings(
        type("Layer", (), {"d_model": 4}), torch.zeros(1, 2, 4), None, torch.tensor([[0, 1]])
    )
    angle = 2 * np.pi / 100  # sine and cosine pairs at temperature 10000: frequencies 1 and 1/100
    assert embedding[0, 1].tolist() == pytest.approx([0, 1, np.sin(angle), np.cos(angle)], abs=1e-5)


def test_preprocessing_is_pil_bilinear_with_imagenet_statistics(expert):
    image = IMAGES[4]  # 40 x 56 -> 32 x 44 or 45
    pixels = expert.image_processor(images=image, return_tensors="pt").pixel_values[0]
    resized = (
        np.asarray(Image.fromarray(image).resize(pixels.shape[:0:-1], Image.Resampling.BILINEAR), np.float32) / 255
    )
    expected = (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert pixels.shape[1] == 32
    assert pixels.permute(1, 2, 0).numpy() == pytest.approx(expected, abs=1e-4)


def test_broken_weights_raise_instead_of_finding_nothing(grounding_dino_folder):
    broken = load_expert("grounding_dino", str(grounding_dino_folder))
    broken.model.model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteScore, match="grounding_dino"):
        broken.score(IMAGES[:1], ROWS[:1])


def test_unknown_options_are_user_errors(grounding_dino_folder):
    with pytest.raises(UserError, match="compat.*offical"):
        load_expert("grounding_dino", str(grounding_dino_folder), compat="offical")
