"""Accidents of experts, each with real Ray: what can be repaired changes nothing, what cannot is named."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from t2ir1_ray.errors import RunError
from tests.system.runs import assert_same_metrics, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
FAULTY = "tests.system.faulty_experts.FaultyHps"


def faulty(
    folder: Path, fault: str, *overrides: str, experts: tuple[str, ...] = ("hps", "git")
) -> list[dict[str, Any]]:
    """Two steps with HPS, which has the accident `fault`, and others."""
    accident = [f"experts.hps.kind={FAULTY}", f"experts.hps.options={{fault: {fault}, marker: {folder}.marker}}"]
    return run(folder, "train.steps=2", "eval.every=0", *accident, *overrides, experts=experts)


@pytest.fixture(scope="module")
def healthy(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return faulty(tmp_path_factory.mktemp("faults") / "healthy", "none")


@pytest.mark.parametrize("fault", ["raise", "kill"])
def test_an_expert_that_fails_once_changes_nothing(fault: str, healthy: list[dict[str, Any]], tmp_path: Path) -> None:
    """`kill` is SIGKILL in the middle of a call: the actor is restarted and all its calls are made again."""
    found = faulty(tmp_path / fault, fault)
    assert Path(f"{tmp_path / fault}.marker").exists()
    assert_same_metrics(healthy, found, tolerance=0)


def test_a_corrupt_image_is_dropped_from_its_group_and_counted(healthy: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second = faulty(tmp_path / "corrupt", "corrupt")
    assert (first["samples/dropped"], first["groups/dropped"]) == (1, 0)
    assert second["samples/dropped"] == 0
    assert first["tokens"] < healthy[0]["tokens"]


def test_a_nan_stops_the_step_and_names_the_expert(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expert hps.*not finite"):
        faulty(tmp_path / "nan", "nan")


def test_an_expert_that_keeps_failing_stops_the_step_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expert hps.*device-side accident"):
        faulty(tmp_path / "always", "raise_always")


def test_an_expert_that_hangs_is_named_with_what_was_waited_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expert hps: no answer to score prompt \d+ within 20 s \(waited since"):
        faulty(tmp_path / "hang", "hang", "cluster.call_timeout_s=20")


def test_a_monitor_changes_nothing_for_the_policy(healthy: list[dict[str, Any]], tmp_path: Path) -> None:
    """The same run with a monitor: every figure that is not about it is equal."""
    watched = faulty(tmp_path / "watched", "none", "experts.orm.role=monitor", experts=("hps", "git", "orm"))
    assert all(line["reward/orm"] > 0 for line in watched)
    assert len(healthy[0]) > 40
    assert_same_metrics(healthy, [{key: line[key] for key in healthy[0]} for line in watched], tolerance=0)


def test_an_expert_may_bring_its_own_packages(tmp_path: Path) -> None:
    """A package that only the expert's runtime environment holds: a wheel, so that no index is asked."""
    wheel = tmp_path / "own_dependency-1.0-py3-none-any.whl"
    info = "own_dependency-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("own_dependency.py", "from tests.system.faulty_experts import FaultyHps as OwnExpert\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: own-dependency\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    with pytest.raises(ModuleNotFoundError):
        import own_dependency  # noqa: F401
    overrides = ["experts.hps.kind=own_dependency.OwnExpert", f"experts.hps.runtime_env={{pip: ['{wheel}']}}"]
    overrides += ["train.steps=1"]
    (line,) = faulty(tmp_path / "own", "none", *overrides)
    assert line["reward/hps"] > 0


def test_groups_without_a_signal_are_replaced_by_other_prompts(tmp_path: Path) -> None:
    """A cold policy draws the same image again and again: most groups have equal rewards."""
    overrides = ["rollout.temperature=0.2", "rollout.group_size=2", "learner.zero_variance=resample", "train.steps=1"]
    (line,) = faulty(tmp_path / "cold", "none", *overrides, "data.prompts_per_step=4", "learner.max_resamples=6")
    assert line["groups/replaced"] > 0
    assert line["reward/zero_std_groups"] < 1
    assert line["samples/dropped"] == 2 * line["groups/dropped"]
