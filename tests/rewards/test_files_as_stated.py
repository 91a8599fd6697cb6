"""What an expert opened is what its files say: tokenizers of another class, image settings that a class would drop."""

import json
import shutil

import numpy as np
import pytest

from rewards import load_expert
from rewards.base import ExpertScores
from tests.core.refusals import refused
from tests.rewards.tiny_experts import ROWS, random_images

KINDS = ("git", "blip", "grounding_dino", "orm", "hps")
IMAGES = random_images(len(ROWS))


@pytest.fixture
def copy_of(request, tmp_path):
    return lambda kind: shutil.copytree(request.getfixturevalue(f"{kind}_folder"), tmp_path / kind)


def edit(file, **changes):
    """Set keys of a JSON file; a key whose value is `...` is removed."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def scores(kind, folder) -> ExpertScores:
    return load_expert(kind, str(folder)).score(IMAGES, ROWS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "GPT2Tokenizer"])
def test_a_wrong_tokenizer_class_changes_no_score(kind, tokenizer_class, copy_of):
    folder = copy_of(kind)
    expected = scores(kind, folder).scores
    edit(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    assert np.array_equal(scores(kind, folder).scores, expected, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_contradicts_its_file_is_refused(kind, copy_of):
    folder = copy_of(kind)
    edit(folder / "tokenizer_config.json", mask_token="red")
    refused(lambda: load_expert(kind, str(folder)), "expert path", "tokenizer.json", "by this file but")


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_without_tokenizer_json_is_refused(kind, copy_of):
    folder = copy_of(kind)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").rename(folder / "old.json")
    (folder / "vocab.txt").write_text("\n".join(words))
    refused(lambda: load_expert(kind, str(folder)), "expert path", "no tokenizer.json")


SETTINGS = {
    "a class that resizes otherwise": ("git", {"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor"),
    "a class that crops": ("blip", {"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
    "a class that crops scenes": ("grounding_dino", {"image_processor_type": "CLIPImageProcessor"}, "CLIP"),
    "no size": ("grounding_dino", {"size": ...}, "does not say size"),
    "no mean": ("git", {"image_mean": ...}, "does not say image_mean"),
    "a deviation of null": ("blip", {"image_std": None}, "does not say image_std"),
    "a size the model does not see": ("blip", {"size": {"height": 16, "width": 16}}, "16 x 16"),
    "no crop where the model sees squares": ("git", {"do_center_crop": False}, "32 x 48"),
    "a mean that is none": ("git", {"image_mean": "white"}, "no image processor"),
}


@pytest.mark.parametrize(("kind", "changes", "word"), SETTINGS.values(), ids=SETTINGS)
def test_image_settings_that_are_not_what_was_loaded_are_refused(kind, changes, word, copy_of):
    folder = copy_of(kind)
    edit(folder / "preprocessor_config.json", **changes)
    refused(lambda: load_expert(kind, str(folder)), "expert path", "preprocessor_config.json", word)


def test_two_files_of_image_settings_must_agree(copy_of):
    folder = copy_of("git")
    expected = scores("git", folder).scores
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    nested = folder / "processor_config.json"
    nested.write_text(json.dumps({"processor_class": "GitProcessor", "image_processor": stated}))
    assert np.array_equal(scores("git", folder).scores, expected, equal_nan=True)
    nested.write_text(json.dumps({"image_processor": {**stated, "image_mean": [0.5, 0.5, 0.5]}}))
    refused(lambda: load_expert("git", str(folder)), nested.name, "preprocessor_config.json", "image_mean")


@pytest.mark.parametrize("name", ["CLIPFeatureExtractor", "CLIPImageProcessorFast"])
def test_older_and_newer_names_of_the_class_and_sizes_as_numbers_are_known(name, copy_of):
    folder = copy_of("git")
    expected = scores("git", folder).scores
    edit(folder / "preprocessor_config.json", image_processor_type=name, size=32, crop_size=32)
    assert np.array_equal(scores("git", folder).scores, expected, equal_nan=True)


OWN_PREPROCESSING = {
    "hps, another mean": ("hps", "open_clip_config.json", {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}, "mean"),
    "hps, another deviation": ("hps", "open_clip_config.json", {"preprocess_cfg": {"std": [1, 1, 1]}}, "std"),
    "orm, CLIP's mean": ("orm", "preprocessor_config.json", {"image_mean": [0.48, 0.46, 0.41]}, "image_mean"),
    "orm, nested": ("orm", "processor_config.json", {"image_processor": {"image_std": [0.3, 0.3, 0.3]}}, "image_std"),
}


@pytest.mark.parametrize(("kind", "name", "content", "word"), OWN_PREPROCESSING.values(), ids=OWN_PREPROCESSING)
def test_experts_that_prepare_images_themselves_hold_that_against_the_file(kind, name, content, word, copy_of):
    file = copy_of(kind) / name
    stated = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(stated | content))
    refused(lambda: load_expert(kind, str(file.parent)), "expert path", name, word)


def test_what_agrees_with_own_preprocessing_is_taken(copy_of):
    folder = copy_of("orm")
    expected = scores("orm", folder).scores
    stated = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 384, "width": 384}}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    assert np.array_equal(scores("orm", folder).scores, expected, equal_nan=True)
