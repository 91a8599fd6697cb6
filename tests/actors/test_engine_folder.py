"""The engine's configuration lies where vLLM finds compiled code again, and the engine starts beside other roles."""

import json
from pathlib import Path

import pytest
from vllm import ModelRegistry
from vllm.engine.arg_utils import EngineArgs

from actors.text_engine import engine_arguments
from actors.vllm_model import ARCHITECTURE, JanusTrunk, engine_folder
from tests.tiny_janus import tiny_config


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compile_key(**sizes: int) -> str:
    """What vLLM names the folder of its compiled code after, at one start with a model of these sizes."""
    ModelRegistry.register_model(ARCHITECTURE, JanusTrunk)
    with engine_folder(tiny_config(**sizes)) as folder:
        arguments = engine_arguments(str(folder), "float32", 80, 16, 0.03125)
        return EngineArgs(**arguments).create_engine_config().compute_hash()


def test_two_starts_have_one_compile_cache_and_two_models_have_two() -> None:
    first = compile_key()
    assert compile_key() == first
    assert compile_key(layers=3) != first


def test_the_engine_asks_for_little_free_memory_whatever_its_cache_takes() -> None:
    with engine_folder(tiny_config()) as folder:
        cache = EngineArgs(**engine_arguments(str(folder), "float32", 80, 16, 0.5)).create_engine_config().cache_config
    assert cache.gpu_memory_utilization <= 0.05
    assert cache.kv_cache_memory_bytes == 2**29


def test_the_folder_is_named_by_its_content_and_mended(cache: Path) -> None:
    with engine_folder(tiny_config()) as first:
        content = (first / "config.json").read_text()
        assert json.loads(content)["architectures"] == [ARCHITECTURE]
    assert first.is_relative_to(cache)
    (first / "config.json").write_text("torn")
    with engine_folder(tiny_config()) as again, engine_folder(tiny_config(layers=3)) as other:
        assert again == first != other
        assert (again / "config.json").read_text() == content
    assert [file.name for file in first.iterdir()] == ["config.json"]


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.write_text("no folder")
    with engine_folder(tiny_config()) as folder:
        assert (folder / "config.json").is_file()
    assert not folder.exists()
