"""A policy's text is split as its `tokenizer.json` says, whatever the metadata beside that file make of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from t2ir1_ray.checkpoints.tokenizer import PROBES
from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.janus import policy
from tests.core.refusals import refused
from tests.tiny_tokenizers import write_byte_level

CLASSES = (
    "LlamaTokenizerFast",
    "LlamaTokenizer",
    "XLMRobertaTokenizer",
    "GPT2Tokenizer",
    "BertTokenizer",
    "T5Tokenizer",
)
"""Of which only GPT2Tokenizer is one for byte-level files."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy").mkdir()
    return tmp_path / "policy"


def ids_of(folder: Path, text: str) -> list[int]:
    return policy.load_tokenizer(str(folder))(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("model_type", ["multi_modality", "janus", "bert"])
@pytest.mark.parametrize("tokenizer_class", CLASSES)
def test_the_class_that_metadata_name_changes_no_id(tokenizer_class: str, model_type: str, folder: Path) -> None:
    stated = write_byte_level(folder, tokenizer_class)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for text in PROBES:
        assert ids_of(folder, text) == stated.encode(text, add_special_tokens=False).ids
    assert ids_of(folder, "two red apples") != ids_of(folder, "tworedapples")


def test_spaces_reach_the_prompt_and_the_plan_keeps_them(folder: Path) -> None:
    write_byte_level(folder, "LlamaTokenizerFast", clean_up_tokenization_spaces=True)
    (folder / "config.json").write_text('{"model_type": "multi_modality"}')
    form = policy.PromptFormat(policy.load_tokenizer(str(folder)), PolicyConfig(path=str(folder)))
    assert form.image_prompt_ids("two red apples", None) != form.image_prompt_ids("tworedapples", None)
    for text in ("two red  apples .", " a n't , b !"):
        assert form.plan_text(form.tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("tokenizer_class", CLASSES[:3])
def test_an_exported_policy_splits_text_as_its_source(tokenizer_class: str, tiny_janus: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_janus, tmp_path / "source")
    stated = write_byte_level(source, tokenizer_class)
    policy.save_policy(str(source), {"lm_head.weight": torch.ones(64, 64)}, tmp_path / "out")
    for text in PROBES:
        assert ids_of(tmp_path / "out", text) == ids_of(source, text) == stated.encode(text).ids


def test_settings_that_contradict_the_file_are_refused(tiny_janus: Path, tmp_path: Path) -> None:
    """`red` becomes a control token; another file under a versioned name is taken instead of tokenizer.json."""
    broken = shutil.copytree(tiny_janus, tmp_path / "broken")
    config = json.loads((broken / "tokenizer_config.json").read_text())
    for change in ({"mask_token": "red"}, {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}):
        (broken / "tokenizer_config.json").write_text(json.dumps({**config, **change}))
        write_byte_level(tmp_path, "GPT2Tokenizer")
        shutil.copy(tmp_path / "tokenizer.json", broken / "tokenizer.4.0.0.json")
        refused(lambda: policy.load_tokenizer(str(broken)), "policy.path", "tokenizer.json", "by this file but")


@pytest.mark.parametrize("files", [["vocab.txt"], ["vocab.json", "merges.txt"], ["tokenizer.model"], []])
def test_a_vocabulary_without_its_rules_is_refused(files: list[str], tiny_janus: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_janus, tmp_path / "vocabulary")
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    (folder / "tokenizer.json").unlink()
    for name in files:
        (folder / name).write_text(json.dumps(vocabulary) if name.endswith(".json") else "\n".join(vocabulary))
    refused(lambda: policy.load_tokenizer(str(folder)), "policy.path", "no tokenizer.json", "save_pretrained")


def test_ids_that_no_vocabulary_has_are_refused_at_once(tiny_janus: Path, tmp_path: Path) -> None:
    """The tokenizers library walks over every id up to the largest: half a minute for 2^31."""
    folder = shutil.copytree(tiny_janus, tmp_path / "policy")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["left"] = 1 << 31
    (folder / "tokenizer.json").write_text(json.dumps(content))
    refused(lambda: policy.load_tokenizer(str(folder)), "policy.path", "'left' has the id 2147483648")
