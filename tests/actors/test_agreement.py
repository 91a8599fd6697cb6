"""What nodes must agree on: the folder in which the driver left its mark, and what lies in checkpoints."""

import os
from pathlib import Path

import pytest

from actors import agreement
from actors.agreement import BLOCK_BYTES, BLOCKS, difference, digests, look


def test_the_run_folder_is_known_by_what_the_driver_has_written(tmp_path: Path) -> None:
    mark = tmp_path / ".mark"
    mark.write_text("token")
    assert look(str(mark), "token", True, []).folder is None
    assert [file.name for file in tmp_path.iterdir()] == [".mark"]
    for other in (tmp_path / "elsewhere" / ".mark", mark):  # not there, and a folder of that name by itself
        assert look(str(other), "other", False, []).folder == "is not the folder that the driver sees"


def test_a_folder_that_a_learner_cannot_write_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / ".mark"
    mark.write_text("token")

    def refuse(self: Path, text: str) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)  # root can write anywhere
    assert look(str(mark), "token", True, []).folder == "cannot be written there (Read-only file system)"
    assert look(str(mark), "token", False, []).folder is None


def test_another_version_a_part_and_a_missing_file_have_other_digests(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "lock.json").write_text("1")
    (folder / "README.md").write_text("of no interest")
    (folder / "config.json").write_text("{}")
    weights = folder / "model.safetensors"
    content = bytearray(os.urandom(3 << 20))
    weights.write_bytes(content)
    before = digests(folder)
    assert sorted(before) == ["config.json", "model.safetensors"]
    assert digests(weights) == {"model.safetensors": before["model.safetensors"]}
    for changed in (content[:-1], bytes([content[0] ^ 1]) + content[1:], content[:-1] + bytes([content[-1] ^ 1])):
        weights.write_bytes(changed)
        assert digests(folder)["model.safetensors"] != before["model.safetensors"]
    weights.unlink()
    assert sorted(digests(folder)) == ["config.json"]
    assert digests(tmp_path / "none") is None


def test_a_large_file_is_read_in_part(tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)  # a terabyte would take an hour
    assert digests(file)
    assert BLOCKS * BLOCK_BYTES == 4 << 20


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        ({"driver": {"a": "1"}}, {"x": {"a": "1"}, "y": {"a": "1"}}, None),
        ({"driver": None}, {"x": None, "y": None}, None),  # a hub's: whoever loads it brings it
        ({"driver": None}, {"x": {"a": "1"}}, None),  # the driver needs no expert
        ({"driver": {"a": "1"}}, {"x": {"a": "1"}, "y": None}, "/m is on driver, and not on y"),
        ({"driver": None}, {"x": {"a": "1"}, "y": None}, "/m is on x, and not on y"),
        ({"driver": {"a": "1", "b": "1"}}, {"x": {"a": "1"}}, "/m is not the same on x and on driver (b)"),
        ({"driver": {"a": "1"}}, {"x": {"a": "2"}}, "/m is not the same on x and on driver (a)"),
        ({"x": {"a": "1"}}, {"x": {"a": "1"}, "y": {"a": "2", "c": ""}}, "/m is not the same on y and on x (a)"),
    ],
)
def test_the_node_that_differs_is_named(here: dict, there: dict, said: str | None) -> None:
    assert difference("/m", here, there) == said


def test_a_role_needs_its_own_checkpoint_only() -> None:
    from t2ir1_ray import config

    settings = config.load("shapes")
    assert list(agreement._paths(settings, {"rollout"})) == ["policy.path"]
    assert list(agreement._paths(settings, {"expert-hps", "expert-orm"})) == ["experts.hps.path", "experts.orm.path"]
