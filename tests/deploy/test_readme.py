"""The runbook: short, its files exist, its sizes are those that are rendered."""

import re
from pathlib import Path

import pytest

import deploy
from deploy import sizing
from deploy.targets import TARGETS
from t2ir1_ray import config as configuration
from t2ir1_ray.doctor import policy_shapes
from t2ir1_ray.fitting.capacity import run_size

FOLDER = Path(deploy.__file__).parent
TEXT = (FOLDER / "README.md").read_text()


def test_it_is_short_and_names_every_target() -> None:
    assert len(TEXT.splitlines()) <= 200
    assert set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", TEXT, re.M)) >= {("kuberay", ""), ("aws", "gcp")}
    for target in TARGETS:
        assert f"`{target}`" in TEXT


def test_files_that_it_names_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (FOLDER / link).exists(), link


@pytest.mark.parametrize(("column", "recipe"), [(1, "janus_pro_7b"), (2, "janus_pro_1b")])
def test_sizes_are_those_that_are_rendered(column: int, recipe: str) -> None:
    rows = {cells[0]: cells for line in TEXT.splitlines() if len(cells := line.strip("| ").split(" | ")) == 3}
    config = configuration.load(recipe)
    of = sizing.needs(config)
    _, workers = sizing.machines(of, TARGETS["aws"].catalogue, "aws")
    size = run_size(config, policy_shapes(config))
    assert rows["GPUs"][column].startswith(f"{workers.gpus * workers.count} of ")
    assert rows["memory of the workers together"][column] == f"{workers.memory_gb} GB"
    assert rows["shared disk: models / runs"][column] == f"{of.models_gb} / {of.runs_gb} GB"
    [checkpoints] = [cells for name, cells in rows.items() if name.startswith("a checkpoint (")]
    assert checkpoints[column] == f"{size.checkpoint_gb:.0f} GB"
    assert size.checkpoints == 4
