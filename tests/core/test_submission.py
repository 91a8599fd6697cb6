"""What `ray job submit --working-dir .` uploads from a folder in which somebody has worked: the code, in seconds."""

import subprocess
import time
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package, get_uri_for_directory

ROOT = Path(__file__).parents[2]
BESIDE = {
    "models/deepseek-community/Janus-Pro-7B/model.safetensors": 15_000,
    "models/orm/model.safetensors": 16_000,
    "runs/first/checkpoints/step_000100/learner/zero.pt": 9_000,
    "T2I-R1/data/prompts.json": 10,
}
"""File -> its size in MB: 40 GB that take no place on the disk."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this project's own files, and beside them what the README has downloaded and a run has left."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name, size_mb in BESIDE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size_mb * 10**6)
    return tmp_path


def test_models_and_runs_beside_the_code_are_not_uploaded(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As `ray job submit` does it: a name from the contents of all files, then an archive of them."""
    assert sum(file.stat().st_size for file in checkout.rglob("*") if file.is_file()) > 40e9
    archive = tmp_path_factory.mktemp("upload") / "package.zip"
    excludes = get_runtime_env_default_excludes()
    begin = time.process_time()
    get_uri_for_directory(str(checkout), include_gitignore=True, excludes=excludes)
    create_package(str(checkout), archive, include_gitignore=True, excludes=excludes)
    assert time.process_time() - begin < 5
    assert archive.stat().st_size < 20e6
    with ZipFile(archive) as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
    assert not {name for name in names if name.startswith(("models/", "runs/", "T2I-R1/"))}
    assert {"t2ir1_ray/train.py", "actors/cluster.py", "t2ir1_ray/shapes/weights/policy/model.safetensors"} <= names
