"""Accidents of experts, each with real Ray: what can be repeated changes nothing, what cannot is named."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.calls import Pool, wait_for
from actors.cluster import AGAIN
from actors.expert import ExpertActor
from rewards.score import SHIPPED_WEIGHTS
from t2ir1_ray.errors import RunError
from t2ir1_ray.records.schema import Rollouts, Scores
from tests.system.runs import assert_same_metrics, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
FAULTY = "tests.system.faulty_experts.FaultyHps"


def faulty(folder: Path, *overrides: str, hps: str = "none", git: str = "none", **monitor: str) -> list[dict[str, Any]]:
    """Two steps with two copies of HPS, in the slots of HPS and GIT, and the accidents that they have."""
    accidents = [f"experts.git.path={SHIPPED_WEIGHTS / 'hps'}"]
    for name, fault in (("hps", hps), ("git", git)):
        accidents.append(f"experts.{name}.kind={FAULTY}")
        accidents.append(f"experts.{name}.options={{fault: {fault}, marker: {folder}.{name}}}")
    accidents += [f"experts.{name}.role={role}" for name, role in monitor.items()]
    return run(folder, "train.steps=2", "eval.every=0", *accidents, *overrides, experts=("hps", "git", *monitor))


@pytest.fixture(scope="module")
def healthy(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return faulty(tmp_path_factory.mktemp("faults") / "healthy")


def test_repeated_calls_and_a_monitor_change_nothing(healthy: list[dict[str, Any]], tmp_path: Path) -> None:
    """One expert raises once, the other is killed in the middle of a call and started again, a third only watches."""
    found = faulty(tmp_path / "run", hps="raise", git="kill", orm="monitor")
    assert (tmp_path / "run.hps").exists()
    assert (tmp_path / "run.git").exists()
    assert all(line["reward/orm"] > 0 for line in found)
    assert found[-1]["actors/restarts"] == 1
    assert len(healthy[0]) > 40
    unwatched = [{key: line[key] for key in own} for own, line in zip(healthy, found, strict=True)]
    assert_same_metrics(healthy, unwatched, tolerance=0)


def test_an_expert_that_dies_at_every_call_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^expert git 0: died during score prompt [^\n]*$"):
        faulty(tmp_path / "run", "reward.retries=1", git="kill_always")
    assert (tmp_path / "run.git").read_text() == "xx"


def test_a_corrupt_image_is_dropped_from_its_group_and_counted(healthy: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second = faulty(tmp_path / "corrupt", hps="corrupt")
    assert (first["samples/dropped"], first["groups/dropped"]) == (1, 0)
    assert second["samples/dropped"] == 0
    assert first["tokens"] < healthy[0]["tokens"]


def test_groups_without_a_signal_are_replaced_by_other_prompts(tmp_path: Path) -> None:
    """A cold policy draws the same image again and again: most groups have equal rewards."""
    overrides = ["rollout.temperature=0.1", "rollout.group_size=2", "learner.zero_variance=resample", "train.steps=1"]
    (line,) = faulty(tmp_path / "cold", *overrides, "data.prompts_per_step=6", "learner.max_resamples=3")
    assert line["groups/replaced"] > 0
    assert line["reward/zero_std_groups"] < 1
    assert line["samples/dropped"] == 2 * line["groups/dropped"]


# --- one expert actor, called as a run calls it -------------------------------------------------------------------


@pytest.fixture
def pools() -> Iterator[list[Pool]]:
    """Pools whose actors end with the test."""
    started: list[Pool] = []
    yield started
    for pool in started:
        for actor in pool.actors:
            ray.kill(actor)


def score(pools: list[Pool], kind: str, fault: str, folder: Path, timeout_s: float, **options: Any) -> Scores:
    """What an expert says about one group of four black images."""
    retries = {"max_restarts": 2, "max_task_retries": 2}
    settings = {"fault": fault, "marker": str(folder / "marker")}
    arguments = (kind, str(SHIPPED_WEIGHTS / "hps"), "float32", 64, settings)
    pools.append(Pool("expert hps", [ray.remote(ExpertActor).options(**retries, **options).remote(*arguments)]))
    wait_for(pools[0].actors[0].__ray_ready__.remote(), "expert hps", "start", 200)
    ids = [np.zeros(1, np.int32)] * 4
    values = [np.zeros(1, np.float32)] * 4
    group = Rollouts(
        prompt_id=["7"] * 4,
        sample=np.arange(4, dtype=np.int32),
        policy_version=np.zeros(4, np.int32),
        seed=np.zeros(4, np.int64),
        semantic_prompt_ids=ids,
        semantic_ids=ids,
        semantic_logprobs=values,
        plan_truncated=np.zeros(4, bool),
        plan=[""] * 4,
        image_prompt_ids=ids,
        image_ids=np.zeros((4, 36), np.int32),
        image_logprobs=np.zeros((4, 36), np.float32),
        pixels=np.zeros((4, 24, 24, 3), np.uint8),
    )
    prompt = {"prompt_id": "7", "prompt": "a red circle"}
    answer = pools[0].call("score", group.to_arrow(), [prompt], **AGAIN)
    return Scores.from_arrow(wait_for(answer, pools[0].name, "score prompt 7", timeout_s))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", "expert hps: .*not finite"),
        ("raise_always", "expert hps: score prompt 7 failed: .*device-side accident"),
        ("hang", r"expert hps: no answer to score prompt 7 within 3 s \(waited since"),
    ],
)
def test_what_stops_a_step_names_the_expert(fault: str, words: str, pools: list[Pool], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=words) as error:
        score(pools, FAULTY, fault, tmp_path, timeout_s=3 if fault == "hang" else 60)
    assert "\n" not in str(error.value)


def test_an_expert_may_bring_its_own_packages(pools: list[Pool], tmp_path: Path) -> None:
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
    own = {"pip": [str(wheel)]}
    found = score(pools, "own_dependency.OwnExpert", "none", tmp_path, timeout_s=60, runtime_env=own)
    assert found.status == ["ok"] * 4
    assert len(set(found.score.tolist())) == 1
