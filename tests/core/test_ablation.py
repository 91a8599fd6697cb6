"""The ablation's table and plot on made-up run folders; nothing is trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from t2ir1_ray import config as configuration
from t2ir1_ray.errors import RunError, UserError
from tests.benchmarks import ablation

STEPS = 30
BASE = 0.30


def write_run(
    root: Path,
    variant: str,
    seed: int,
    after: float,
    steps: int = STEPS,
    score: Sequence[float] = (0.4, 0.8),
    complete: bool = True,
) -> None:
    """A run whose experts all score `score[0]` in the first half of its steps and `score[1]` in the second."""
    run = ablation.folder(root, variant, seed)
    run.mkdir(parents=True)
    overrides = [f"train.steps={STEPS}", f"train.seed={seed}", *ablation.VARIANTS[variant]]
    configuration.save(configuration.load("shapes", overrides), run / "config.yaml")
    heldout = {"heldout/accuracy": BASE, "heldout/accuracy_greedy": BASE + 0.1, "heldout/accuracy_stderr": 0.02}
    tasks = [task for kind in ablation.KINDS.values() for task in kind]
    heldout |= {f"heldout/task/{task}": BASE + 0.01 * place for place, task in enumerate(tasks)}
    lines = [{"step": 0, **heldout}]
    for step in range(1, steps + 1):
        value = score[0] if step <= STEPS / 2 else score[1]
        line = {"step": step}
        for name in ablation.EXPERTS:
            applies = 0.5 if name == "orm" else 1.0
            line |= {f"expert/{name}/applies": applies, f"expert/{name}/mean": value}
        lines.append(line)
    lines[-1] |= {**heldout, "heldout/accuracy": after, "heldout/accuracy_greedy": after + 0.2}
    lines[-1]["heldout/task/texture"] = after
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text if complete else text[:-5])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, after in enumerate((0.50, 0.56, 0.62)):
        write_run(tmp_path, "both", seed, after)
    write_run(tmp_path, "semantic", 0, 0.35)
    write_run(tmp_path, "hps", 0, 0.31)
    write_run(tmp_path, "token", 0, 0.45, steps=20)
    return tmp_path


def test_rows_hold_means_and_errors_over_seeds(root: Path) -> None:
    base, semantic, both, hps = ablation.rows(root, ablation.VARIANTS, range(3))
    assert (base.name, base.accuracy, base.change) == ("base", (BASE, 0.02), None)
    assert (both.name, both.seeds) == ("both", 3)
    assert both.accuracy == pytest.approx((0.56, 0.06 / 3**0.5))
    assert both.change == pytest.approx((0.26, 0.06 / 3**0.5))
    assert both.greedy == pytest.approx((0.76, 0.06 / 3**0.5))
    assert both.change_greedy == pytest.approx((0.36, 0.06 / 3**0.5))
    assert {kind: mean for kind, (mean, _) in base.kinds.items()} == pytest.approx(
        {"attribute": 0.31, "relation": 0.335, "count": 0.35}
    )
    assert both.kinds["attribute"] == pytest.approx(((0.30 + 0.31 + 0.56) / 3, 0.02 / 3**0.5))
    assert both.kinds["count"] == pytest.approx((0.35, 0))
    assert semantic.accuracy == (0.35, None)
    assert hps.seeds == 1


def test_rewards_are_sums_of_raw_scores_of_the_experts_that_count(root: Path) -> None:
    *_, both, hps = ablation.rows(root, ablation.VARIANTS, range(3))
    assert both.rewarded == pytest.approx((3.5 * 0.4, 3.5 * 0.8))  # orm applies to half of the samples
    assert both.others == (0, 0)
    assert hps.rewarded == pytest.approx((0.4, 0.8))
    assert hps.others == pytest.approx((2.5 * 0.4, 2.5 * 0.8))


def test_gdpo_reports_raw_scores(tmp_path: Path) -> None:
    write_run(tmp_path, "gdpo", 0, 0.5)
    assert ablation.rows(tmp_path, ["gdpo"], [0])[-1].rewarded == pytest.approx((1.4, 2.8))


def test_another_guidance_has_a_base_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path, "both", 0, 0.5)
    write_run(tmp_path, "guided", 0, 0.5)
    names = [row.name for row in ablation.rows(tmp_path, ablation.VARIANTS, [0])]
    assert names == ["base", "base, guidance 1.5", "both", "guided"]


@pytest.mark.parametrize("options", [{"steps": 29}, {"complete": False}])
def test_a_run_counts_when_its_last_step_is_written(tmp_path: Path, options: dict) -> None:
    write_run(tmp_path, "both", 0, 0.5, **options)
    assert ablation.read(ablation.folder(tmp_path, "both", 0)) is None
    assert ablation.read(ablation.folder(tmp_path, "both", 1)) is None


def test_begun_runs_are_resumed_and_others_started(root: Path) -> None:
    run = ablation.folder(root, "token", 0)
    begun = ablation.command(root, "token", 0, STEPS)
    assert begun[begun.index("--resume") + 1] == str(run)
    fresh = ablation.command(root, "token", 1, None)
    assert "--resume" not in fresh
    assert {"learner.semantic_weight=0", "train.seed=1", f"journal.root={root}"} < set(fresh)


def test_every_variant_is_a_valid_configuration() -> None:
    found = [configuration.load("shapes", overrides) for overrides in ablation.VARIANTS.values()]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


def test_the_table_is_markdown_and_json(root: Path, capsys: pytest.CaptureFixture) -> None:
    ablation.main(["--table", "--root", str(root), "--plot", str(root / "plot.svg")])
    lines = capsys.readouterr().out.splitlines()
    assert "| base |  | 30.0 ± 2.0 |  | 40.0 |  | 31.0 | 33.5 | 35.0 |  |  |" in lines
    both = ["56.0 ± 3.5", "+26.0 ± 3.5", "76.0 ± 3.5", "+36.0 ± 3.5", "39.0 ± 1.2", "33.5 ± 0.0", "35.0 ± 0.0"]
    assert f"| both | 3 | {' | '.join(both)} | 1.40 -> 2.80 |  |" in lines
    assert "| hps | 1 | 31.0 | +1.0 | 51.0 | +11.0 | 30.7 | 33.5 | 35.0 | 0.40 -> 0.80 | 1.00 -> 2.00 |" in lines
    assert not any(line.startswith("| token |") for line in lines)
    assert json.loads(lines[-1])["both"]["accuracy"][0] == pytest.approx(0.56)
    assert ElementTree.parse(root / "plot.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--only", "bth"], "--only bth"), (["--seeds", "0,x"], "--seeds 0,x")]
)
def test_bad_arguments_get_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ablation.main([*arguments, "--table"])


def test_no_finished_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run of both is finished"):
        ablation.main(["--table", "--only", "both", "--root", str(tmp_path)])
