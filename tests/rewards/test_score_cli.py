"""python -m rewards.score: the table, and one line with exit code 2 on bad input."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from rewards.score import main
from tests.rewards.tiny_experts import ROWS, random_images


@pytest.fixture
def inputs(tmp_path):
    """(prompts file, image folder) with two images for the first prompt, one broken, one for the fifth."""
    prompts, images = tmp_path / "prompts.jsonl", tmp_path / "images"
    prompts.write_text("\n".join(map(json.dumps, ROWS)))
    images.mkdir()
    for name, pixels in zip(("0_a.png", "0_b.png", "00005.png"), random_images(3), strict=True):
        Image.fromarray(pixels).save(images / name)
    (images / "1.jpg").write_bytes(b"junk")
    return prompts, images


def arguments(prompts, images, checkpoint):
    return ["--expert", "git", "--prompts", str(prompts), "--images", str(images), "--checkpoint", str(checkpoint)]


def test_table_of_scores(inputs, git_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main([*arguments(*inputs, git_folder), "--option", "batch_size=2"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("0_a.png", "0_b.png", "1.jpg", "00005.png", "a red cat", "mean of 2"))
    assert "not a readable image file" in output
    assert " na " in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, i: (p, i / "nowhere"), "--images"),
        (lambda p, i: (p.parent / "nowhere.jsonl", i), "--prompts"),
        (lambda p, i: (p.write_text('{"prompt": "a"}\n{"prompt": 3}') and p, i), "prompts.jsonl:2"),
        (lambda p, i: (p.write_text('{"prompt": "a"') and p, i), "prompts.jsonl:1"),
        (lambda p, i: (p.write_text('{"prompt": "only one"}') and p, i), "00005.png"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(change, message, inputs, git_folder, capsys):
    assert main(arguments(*change(*inputs), git_folder)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


@pytest.mark.slow
def test_the_command_runs_as_a_module(inputs, tmp_path):
    command = [sys.executable, "-m", "rewards.score", *arguments(*inputs, tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == 2
    assert "nowhere does not exist" in result.stderr
    assert "Traceback" not in result.stderr
