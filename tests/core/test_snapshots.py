"""Checkpoints are whole or absent, the right ones stay, and a damaged one is passed over."""

import errno
import hashlib
import json
from pathlib import Path

import pytest

from t2ir1_ray.errors import RunError
from t2ir1_ray.journal.snapshots import Snapshots


def write(folder: Path) -> list[str]:
    (folder / "model.bin").write_bytes(b"weights" * 100)
    (folder / "learner").mkdir()
    (folder / "learner" / "state.bin").write_bytes(b"moments")
    return ["model.bin", "learner/state.bin"]


def steps(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, keep_last=2)
    for step, accuracy in enumerate([0.2, 0.5, None, 0.3, 0.4], start=1):
        snapshots.create(step, 1, accuracy, write)
    assert steps(tmp_path) == ["step_000002", "step_000004", "step_000005"]
    newest = snapshots.newest(pytest.fail, at_most=5)
    assert (newest.step, newest.ranks, newest.accuracy) == (5, 1, 0.4)
    assert snapshots.newest(pytest.fail, at_most=4).step == 4


def test_a_failed_save_leaves_nothing_and_names_the_reason(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, keep_last=0)
    snapshots.create(1, 1, None, write)

    def full(folder: Path) -> list[str]:
        write(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="No space left on device: the checkpoints before it are whole"):
        snapshots.create(2, 1, None, full)
    assert steps(tmp_path) == ["step_000001"]


def test_without_the_share_of_a_rank_there_is_no_checkpoint(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, keep_last=0)
    with pytest.raises(RunError, match="learner/rank_1.pt was written and is not there: the checkpoints before it"):
        snapshots.create(1, 2, None, lambda folder: [*write(folder), "learner/rank_1.pt"])
    assert steps(tmp_path) == []


def test_the_manifest_has_every_file_as_a_checksum_program_sees_it(tmp_path: Path) -> None:
    folder = Snapshots(tmp_path, keep_last=0).create(1, 1, None, write)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.keys() == {"model.bin", "learner/state.bin", "state.json"}
    for name, entry in manifest.items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest", "manifest is no JSON"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(damage: str, tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, keep_last=0)
    snapshots.create(1, 1, None, write)
    folder = snapshots.create(2, 1, None, write)
    file, manifest = folder / "learner" / "state.bin", folder / "manifest.json"
    if damage == "flip":
        file.write_bytes(b"mOments")
    elif damage == "truncate":
        file.write_bytes(b"mome")
    elif damage == "remove":
        file.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    said: list[str] = []
    assert snapshots.newest(said.append, at_most=2).step == 1
    assert len(said) == 1
    assert "step_000002 is not whole" in said[0]


def test_what_a_resumed_run_makes_again_is_removed(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, keep_last=0)
    for step in (2, 4, 6):
        snapshots.create(step, 1, None, write)
    (tmp_path / ".step_000008.partial").mkdir()
    snapshots.forget_after(4)
    assert steps(tmp_path) == ["step_000002", "step_000004"]
