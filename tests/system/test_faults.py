"""Accidents of experts, each with real Ray: what can be repeated changes nothing, what cannot is named."""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.calls import Pool, wait_for
from actors.expert import PROBE, ExpertActor
from actors.spawning import EXPERT_THREADS, RESTARTED
from rewards.score import SHIPPED_WEIGHTS
from t2ir1_ray.errors import RunError
from t2ir1_ray.records.schema import Rollouts, Scores
from tests.system.runs import assert_same_metrics, metrics, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
FAULTY = "tests.system.faulty_experts.FaultyHps"


def test_an_expert_has_one_accident_after_another(whole: Path, tmp_path: Path) -> None:
    """Two calls a step, and a probe in the first one. It raises and is killed in the middle of a call, and both calls
    are repeated; a third image of step 3 is corrupt, and is dropped from its group and counted; in step 5 it dies more
    often than it may in one, which ends the run. Another expert only watches, and not the images: the probe names it.
    """
    accidents = ["raise", "kill", *["none"] * 5, "corrupt", *["none"] * 3, "kill", "kill", "kill"]
    folder, calls = tmp_path / "run", tmp_path / "calls"
    faulty = [f"experts.hps.kind={FAULTY}", f"experts.hps.options={{accidents: {accidents}, calls: {calls}}}"]
    blind = [f"experts.orm.kind={FAULTY}", f"experts.orm.path={SHIPPED_WEIGHTS / 'hps'}", "experts.orm.role=monitor"]
    blind += [f"experts.orm.options={{accidents: {['place'] * 99}, calls: {tmp_path / 'others'}}}"]
    overrides = [*faulty, *blind, "train.steps=6", "eval.every=0"]
    with pytest.raises(RunError, match=r"^expert hps 0: died 3 times before a step was done[^\n]*$"):
        run(folder, *overrides, experts=("hps", "orm"))
    assert calls.stat().st_size == len(accidents)

    healthy, found = metrics(whole)[1:4], metrics(folder)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert all(line["reward/orm"] > 0 for line in found)
    assert (found[0]["expert/hps/follows"], found[0]["expert/orm/follows"]) == (pytest.approx(1), pytest.approx(-1))
    told = [json.loads(line) for line in (folder / "activity.jsonl").read_text().splitlines()]
    told = [(line["step"], line["text"]) for line in told if line["kind"] == "warning"]
    assert [(step, text[:24]) for step, text in told] == [(1, "scores of expert orm do ")]
    assert found[1]["actors/restarts"] == 1
    assert len(healthy[0]) > 40
    unwatched = [{key: line[key] for key in own} for own, line in zip(healthy[:2], found[:2], strict=True)]
    assert_same_metrics(healthy[:2], unwatched, tolerance=0)
    assert [line["samples/dropped"] for line in found] == [0, 0, 1, 0]
    assert found[2]["groups/dropped"] == 0
    assert found[2]["tokens"] < healthy[2]["tokens"]


# --- one expert actor, called as a run calls it -------------------------------------------------------------------


@contextmanager
def started(kind: str, accidents: list[str], calls: Path, **options: Any) -> Iterator[Pool]:
    """A pool of one expert actor, which is up; it ends with the block."""
    settings = {"accidents": accidents, "calls": str(calls)}
    arguments = (kind, str(SHIPPED_WEIGHTS / "hps"), "float32", 64, settings, 2)
    actor = ray.remote(**EXPERT_THREADS)(ExpertActor).options(**RESTARTED, **options).remote(*arguments)
    try:
        wait_for(actor.__ray_ready__.remote(), "expert hps", "start", 200)
        yield Pool("expert hps", [actor])
    finally:
        ray.kill(actor)


def score(pool: Pool, timeout_s: float = 60, **options: Any) -> Scores:
    """What the expert says about one group of four black images."""
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
    answer = pool.call("score", group.to_arrow(), [{"prompt_id": "7", "prompt": "a red circle"}], **options)
    return Scores.from_arrow(wait_for(answer, pool.name, "score prompt 7", timeout_s))


def test_what_stops_a_step_names_the_expert(tmp_path: Path) -> None:
    """A score that is not finite and an error, each in three tries, and two calls that do not end; a probe does not
    wait for them."""
    with started(FAULTY, [*["nan"] * 3, *["raise"] * 3, "hang", "hang"], tmp_path / "calls") as pool:
        for words, timeout_s in (
            ("expert hps: .*not finite", 60),
            ("expert hps: score prompt 7 failed: .*device-side accident", 60),
            *[(r"expert hps: no answer to score prompt 7 within 2 s \(waited since", 2)] * 2,
        ):
            with pytest.raises(RunError, match=words) as error:
                score(pool, timeout_s)
            assert "\n" not in str(error.value)
        assert score(pool, concurrency_group=PROBE).status == ["ok"] * 4


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
    own = {"pip": [str(wheel)]}
    with started("own_dependency.OwnExpert", [], tmp_path / "calls", runtime_env=own) as pool:
        found = score(pool)
    assert found.status == ["ok"] * 4
    assert len(set(found.score.tolist())) == 1
