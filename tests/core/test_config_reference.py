"""The configuration reference: complete, from the source, and current wherever it is shown."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from t2ir1_ray import config
from t2ir1_ray.config import reference as config_reference
from t2ir1_ray.config.reference import BEGIN, END, insert, meanings, reference
from t2ir1_ray.errors import UserError

SECTIONS = [
    value for name, value in vars(config).items() if name.endswith("Config") and dataclasses.is_dataclass(value)
]


def test_every_field_has_a_row() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    names = [
        field.name for section in SECTIONS if section is not config.Config for field in dataclasses.fields(section)
    ]
    assert sorted(row.split("`")[1] for row in rows) == sorted(names)
    assert all(row.replace(r"\|", "").count("|") == 5 for row in rows)


def test_rows_say_what_the_source_says() -> None:
    text = reference()
    assert "| `group_size` | `int` | `8` | G: samples (plan, image) per prompt |" in text
    assert "| `betas` | `tuple[float, float]` | `[0.9, 0.999]` |  |" in text
    assert (
        "| `path` | `str` | required | checkpoint: a folder or a hub id (Janus or Janus-Pro, either layout) |" in text
    )
    assert r"| `prompts` | `str \| None` | `null` |" in text
    assert "**`experts.<name>`**" in text


def test_a_comment_belongs_to_the_field_it_stands_beside() -> None:
    found = meanings(config.LearnerConfig)
    assert found["advantages"].startswith("shared (official), or nested")  # on a line of its own brackets
    assert "betas" not in found
    assert set(found) <= {field.name for field in dataclasses.fields(config.LearnerConfig)}


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"# Title\n\n{BEGIN}\nwas here\n{END}\n\nrest, café\n"
    new = insert(text, Path("README.md"))
    assert new.startswith(f"# Title\n\n{BEGIN}\n**`policy`**")
    assert new.endswith(f"|\n{END}\n\nrest, café\n")
    assert "was here" not in new
    assert insert(new, Path("README.md")) == new


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"])
def test_a_file_without_markers_is_refused_and_left_alone(text: str, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(UserError, match="must hold one line"):
        config_reference.main(["--write", str(file)])
    assert file.read_text() == text


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "t2ir1_ray.config.reference"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{reference()}\n"
    file = tmp_path / "README.md"
    file.write_text(f"{BEGIN}\n{END}\n")
    config_reference.main(["--write", str(file)])
    assert reference() in file.read_text()
    result = subprocess.run([*command, "--write", str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)


def test_readme_is_current() -> None:
    readme = Path(config.__file__).parent / "README.md"
    text = readme.read_text()
    assert insert(text, readme) == text, f"run: python -m t2ir1_ray.config.reference --write {readme}"
