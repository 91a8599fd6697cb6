"""python -m rewards.score: the table, and one line with exit code 2 on bad input."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from rewards.score import main, read_rows
from t2ir1_ray.errors import UserError
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


def test_prompts_are_read_as_training_reads_them(inputs, tmp_path, git_folder, capsys):
    """What the reader of training refuses is refused, what it takes is taken."""
    _, images = inputs
    refused = {
        '{"prompt": "a", "nouns": "cat"}': "nouns must be a list",
        '{"prompt": "a", "attr_nouns": {"a": "cat"}}': "attr_nouns must be a list",
        '{"prompt": "a", "task_type": "colour"}': "task_type is 'colour'",
        '{"prompt": "a", "task_type": "spatial", "spatial_info": {"obj1": "a"}}': "spatial_info must",
        '{"prompt": "a", "task_type": "numeracy", "numeracy_info": [{"obj_name": "a"}]}': "numeracy_info must",
        '{"prompt": ""}': "prompt must be a text",
    }
    for line, words in refused.items():
        file = tmp_path / "bad.jsonl"
        file.write_text(line + "\n")
        assert main(arguments(file, images, git_folder)) == 2
        error = capsys.readouterr().err
        assert "bad.jsonl:1: " in error
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_images_keep_their_prompts_whatever_the_file_is_written_with(ending, tmp_path):
    lines = [
        json.dumps(row, ensure_ascii=False) for row in ({"prompt": "a\u2028b"}, {"prompt": "c\x85d"}, {"prompt": "e"})
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(("\ufeff" + ending.join(lines) + ending * 3).encode())
    assert [row["prompt"] for row in read_rows(file)] == ["a\u2028b", "c\x85d", "e"]


@pytest.mark.parametrize(
    "text", ['\n{"prompt": "a"}\n', '{"prompt": "a"}\n\n\n{"prompt": "b"}', '{"prompt": "a"}\r \r{"prompt": "b"}']
)
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_a_blank_line_that_would_shift_the_numbers_is_refused(name, text, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(UserError, match=f"{name}:[12]: a blank line"):
        read_rows(tmp_path / name)


def test_a_list_over_several_lines_has_no_line_numbers(tmp_path):
    (tmp_path / "p.json").write_text('[\n {"prompt": "a"},\n\n {"prompt": "b"}\n]\n')
    assert [row["prompt"] for row in read_rows(tmp_path / "p.json")] == ["a", "b"]
