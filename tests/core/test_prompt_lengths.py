"""Prompts that do not fit the policy are refused or skipped before anything starts, whoever brings them."""

import json
from pathlib import Path

import numpy as np
import pytest

from t2ir1_ray import config, evaluate, generate
from t2ir1_ray.config import Config
from t2ir1_ray.fitting import prompts as fitting
from t2ir1_ray.fitting.prompts import check_tokens, heldout_prompts, training_prompts
from t2ir1_ray.janus.policy import PromptFormat, load_tokenizer
from tests.core.refusals import refused

SHORT = "a red circle above a blue square"
LONG = {"over the limit": "a red circle and " * 12 + "a ring", "over the engine's length": "two yellow rings " * 40}


def write(file: Path, *prompts: str) -> Path:
    file.write_text("".join(json.dumps({"prompt": prompt, "task_type": "non"}) + "\n" for prompt in prompts))
    return file


def shapes(*overrides: str) -> Config:
    return config.load("shapes", ["data.prompts_per_step=2", *overrides])


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_training_and_held_out_prompts_are_measured(text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(tmp_path / "p.jsonl", SHORT, text, SHORT, text)
    refused(lambda: training_prompts(shapes(f"data.prompts={file}")), "data.prompts", "2 of 4", "rows 2, 4", "=40")
    refused(lambda: heldout_prompts(shapes(f"eval.prompts={file}")), "eval.prompts", "2 of 4", "rows 2, 4", "=40")
    skip = shapes(f"data.prompts={file}", f"eval.prompts={file}", "data.too_long=skip")
    table, skipped = training_prompts(skip)
    assert (table["prompt_id"].to_pylist(), skipped) == (["0", "2"], 2)
    assert heldout_prompts(skip)["prompt_id"].to_pylist() == ["0", "2"]
    assert "skipped 2 of 4" in capsys.readouterr().err


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_the_other_commands_refuse_them_too(text: str, tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text(f"{SHORT}\n{text}\n")
    out = ["--out", str(tmp_path / "out")]
    refused(lambda: generate.main(["--prompts", str(file), *out]), "rows 2", "max_prompt_tokens=40")
    row = {"tag": "counting", "include": [{"class": "ring", "count": 1}], "prompt": text}
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text(json.dumps(row) + "\n")
    judges = ["--expert", f"detector.path={tmp_path}"]
    command = ["--benchmark", "geneval", "--prompts", str(metadata), *judges, *out]
    refused(lambda: evaluate.main(command), str(metadata), "rows 1", "max_prompt_tokens=40")
    assert not (tmp_path / "out").exists()


def test_a_step_has_distinct_prompts_or_there_is_no_run(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", SHORT, LONG["over the limit"], SHORT)
    settings = [f"data.prompts={file}", "data.too_long=skip"]
    assert len(training_prompts(shapes(*settings))[0]) == 2
    refused(
        lambda: training_prompts(shapes(*settings, "data.prompts_per_step=3")), "data.prompts_per_step=3", "2 prompts"
    )


def test_the_image_prompt_must_fit_too() -> None:
    form = PromptFormat(load_tokenizer(shapes().policy.path), shapes().policy)
    # The template cuts nothing off the image prompt: a short planning prompt may stand before a long image prompt.
    roomy = shapes("policy.max_prompt_tokens=150", "policy.max_plan_tokens=100")
    texts = [SHORT, "a red circle " * 45]
    refused(lambda: check_tokens(texts, form, roomy), "rows 2", "over the 120 that plan and image leave")
    assert check_tokens(texts, form, shapes("policy.max_prompt_tokens=150")) == [0, 1]


@pytest.mark.parametrize("key", ["max_plan_tokens=100000", "max_prompt_tokens=250", "max_plan_tokens=219"])
def test_limits_beyond_the_models_positions_are_refused(key: str) -> None:
    refused(lambda: training_prompts(shapes(f"policy.{key}")), "policy.max_plan_tokens", "256 positions")


def test_lengths_of_a_large_file_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = shapes()
    form = PromptFormat(load_tokenizer(settings.policy.path), settings.policy)
    texts = [f"{SHORT} {number}" for number in range(fitting.REMEMBERED_FROM)]
    first = fitting._measure(texts, form, settings)
    (file,) = tmp_path.rglob("*.npy")
    monkeypatch.setattr(form, "plan_prompt_ids", None)  # tokenizing again would fail
    np.testing.assert_array_equal(fitting._measure(texts, form, settings), first)
    other = shapes("policy.plan_template='draw {prompt}'")
    with pytest.raises(TypeError):  # another template has other lengths
        fitting._measure(texts, form, other)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(fitting._measure(texts, form, settings), first)
