"""The folders are the architecture: the contracts of pyproject.toml ([tool.importlinter]) hold."""

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]


def test_imports_keep_the_contracts(capsys: pytest.CaptureFixture[str]) -> None:
    code = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out


def test_a_broken_contract_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The layers upside down: the linter sees the imports that this project has."""
    text = (ROOT / "pyproject.toml").read_text()
    upper, lower = '    "actors",\n', '    "learner | rewards",\n'
    assert upper + lower in text
    (tmp_path / "pyproject.toml").write_text(text.replace(upper + lower, lower + upper))
    assert lint_imports(str(tmp_path / "pyproject.toml"), no_cache=True) == 1
    assert "actors.reference -> learner.logprobs" in capsys.readouterr().out
