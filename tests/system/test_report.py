"""The report: what it collects, what the page holds, and how it refuses bad runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from t2ir1_ray.errors import UserError
from t2ir1_ray.report import main
from t2ir1_ray.report_page import build_page, read_run
from t2ir1_ray.report_page.curves import charts
from t2ir1_ray.report_page.dumps import read_dump
from t2ir1_ray.report_page.page import spread_evenly
from tests.system.report_runs import PROMPTS, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "seed0")


def data_of(html: str) -> dict[str, Any]:
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_metrics_are_read_whole(run: Path) -> None:
    read = read_run(run)
    assert read.steps == list(range(7))
    assert read.series["heldout/accuracy"] == [0.25, None, None, None, None, None, 0.5]
    assert read.series["loss"][1:4] == [-0.1, None, -0.1], "a loss that was not finite has no value"
    assert list(read.dumps) == [1, 2, 3, 4, 5, 6]
    assert read.config["train.steps"] == "6"


def test_every_curve_that_a_reader_asks_for(run: Path) -> None:
    shown = {chart.title: dict(chart.curves) for chart in charts(read_run(run).series)}
    assert shown["Reward"] == {"reward/mean": "mean", "reward/hps": "hps", "reward/<b>orm</b>": "<b>orm</b>"}
    assert shown["Held-out accuracy"] == {"heldout/accuracy": "T = 1", "heldout/accuracy_greedy": "greedy"}
    assert shown["Hacking index"] == {
        "hacking/index": "index",
        "hacking/trained": "reward",
        "hacking/watched": "watching",
    }
    assert shown["Weight in the reward"] == {"expert/hps/weight": "hps"}
    assert list(shown["Time per phase"].values()) == ["rollout", "score", "learn", "publish"]
    assert {"KL", "Entropy", "Throughput", "Staleness"} <= set(shown)
    assert "Plan length" not in shown, "no values, no chart"


def test_groups_of_a_dump(run: Path) -> None:
    groups = read_dump(run / "rollouts" / "step_000001.parquet")
    assert [group["prompt"] for group in groups] == PROMPTS[:3]
    assert [group["state"] for group in groups] == ["equal", "spread", "spread"]
    second = groups[1]
    assert second["rewards"][0] is None
    assert second["scores"]["hps"][0] is None
    assert second["mean"] == pytest.approx(np.mean(second["rewards"][1:]), rel=1e-3)
    assert all(image.startswith("data:image/png;base64,") for image in second["images"])


def test_filtered_groups_are_told_from_dropped_ones(run: Path, tmp_path: Path) -> None:
    """`learner.zero_variance=filter` leaves a group without rewards; equal scores still tell why."""
    table = pq.read_table(run / "rollouts" / "step_000001.parquet")
    rewards = table["reward"].to_pylist()
    table = table.set_column(table.schema.get_field_index("reward"), "reward", [[None] * 4 + rewards[4:8] + [None] * 4])
    table = table.cast(pq.read_schema(run / "rollouts" / "step_000001.parquet"))
    pq.write_table(table, tmp_path / "step_000001.parquet")
    assert [g["state"] for g in read_dump(tmp_path / "step_000001.parquet")] == ["equal", "spread", "dropped"]


def test_the_page_holds_every_group_and_no_markup_of_prompts(run: Path) -> None:
    page = build_page([read_run(run)], 64)
    assert page.notes == []
    data = data_of(page.html)
    assert len(data["groups"]) == 18
    assert {group["prompt"] for group in data["groups"]} == {*PROMPTS, "prompt 5"}
    assert "owned" in page.html
    assert not re.search(r"</script><script>document.title|<img src=x|<!-- <script", page.html)
    assert abs(float(page.summary.split(" MB")[0]) - len(page.html.encode()) / 1e6) < 0.1


def test_large_images_become_thumbnails_and_steps_beyond_the_bound_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "large", steps=6, prompts=2, edge=384)
    groups = read_dump(folder / "rollouts" / "step_000003.parquet")
    assert all(image.startswith("data:image/webp;base64,") for group in groups for image in group["images"])
    whole = build_page([read_run(folder)], 64)
    per_step = len(re.search(r'id="dump-0-3">(.*?)</script>', whole.html)[1])
    assert per_step < 8 * 20_000
    smaller = build_page([read_run(folder)], len(whole.html) / 1e6 - 2.5 * per_step / 1e6)
    assert len(smaller.html) < len(whole.html) - 2.5 * per_step
    steps = sorted({group["step"] for group in data_of(smaller.html)["groups"]})
    assert steps[0] == 1
    assert steps[-1] == 6
    assert smaller.notes[0].startswith(f"large: samples of {len(steps)} of 6 dumped steps are shown")
    assert smaller.notes[0] in smaller.html
    for bound in (1, -1, float("nan")):
        with pytest.raises(UserError, match=f"--max-mb={bound:g}: the curves alone need"):
            build_page([read_run(folder)], bound)


@pytest.mark.parametrize(("count", "chosen"), [(0, []), (1, [9]), (2, [1, 9]), (3, [1, 5, 9]), (99, [1, 3, 5, 7, 9])])
def test_spread_evenly(count: int, chosen: list[int]) -> None:
    assert spread_evenly([1, 3, 5, 7, 9], count) == chosen
    assert spread_evenly([], count) == []


def test_a_run_without_dumps_is_curves_only(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "metrics.jsonl", tmp_path)
    page = build_page([read_run(tmp_path)], 64)
    assert data_of(page.html)["groups"] == []
    assert "no samples were dumped" in page.notes[0]


def test_two_runs_of_one_name_are_told_apart(run: Path) -> None:
    page = build_page([read_run(run), read_run(run)], 64)
    assert [one["name"] for one in data_of(page.html)["runs"]] == ["seed0 (A)", "seed0 (B)"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: shutil.rmtree(run), "does not exist"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl does not exist"),
        (lambda run: link(run / "metrics.jsonl", "/dev/zero"), "metrics.jsonl does not exist"),
        (lambda run: (run / "metrics.jsonl").write_text("\n"), "holds no metrics yet"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n{oops'), "metrics.jsonl:2 is not a JSON object"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b'{"step": 1, "\xff": 1}\n'), "metrics.jsonl:1"),
        (lambda run: (run / "metrics.jsonl").write_text("[" * 100_000), "metrics.jsonl:1"),
        (lambda run: (run / "metrics.jsonl").write_text('{"loss": 1}\n'), "metrics.jsonl:1 has no step"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1e999}\n'), "metrics.jsonl:1 has no step"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1e300}\n'), "metrics.jsonl:1 has no step"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml is not YAML"),
        (lambda run: (run / "config.yaml").write_text('"1e3"'), "config.yaml is not YAML (no mapping"),
        (
            lambda run: (run / "rollouts/step_000002.parquet").write_bytes(b"PAR1oops"),
            "step_000002.parquet is not whole",
        ),
        (lambda run: truncate(run / "rollouts/step_000002.parquet"), "step_000002.parquet is not whole"),
        (lambda run: without(run / "rollouts/step_000002.parquet", "plan"), "lacks the column plan"),
        (lambda run: spoil_image(run / "rollouts/step_000002.parquet"), "not a whole PNG"),
    ],
)
def test_a_bad_run_is_refused_by_name(damage: Any, words: str, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(run, folder)
    damage(folder)
    with pytest.raises(UserError) as refusal:
        main([str(folder)])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (folder / "report.html").exists()


def test_what_is_no_file_is_no_dump(run: Path, tmp_path: Path) -> None:
    """Neither a device, which has no end, nor a pipe, which nobody writes to, is waited for."""
    folder = tmp_path / "odd"
    shutil.copytree(run, folder)
    link(folder / "config.yaml", "/dev/zero")
    link(folder / "rollouts/step_000001.parquet", "/dev/zero")
    (folder / "rollouts/step_000002.parquet").unlink()
    os.mkfifo(folder / "rollouts/step_000002.parquet")
    read = read_run(folder)
    assert list(read.dumps) == [3, 4, 5, 6]
    assert read.config == {}


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def without(path: Path, column: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


def spoil_image(path: Path) -> None:
    table = pq.read_table(path)
    images = [image[:-40] for image in table["image"].to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", [images]), path)


def test_the_command(run: Path, tmp_path: Path) -> None:
    def report(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "t2ir1_ray.report", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    good = report(run, "--out", tmp_path / "new" / "page.html")
    assert good.returncode == 0, good.stderr
    assert "page.html: 2." in good.stdout
    assert "18 groups" in good.stdout
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["page.html"]
    bad = report(tmp_path / "nowhere")
    assert bad.returncode == 2
    assert bad.stderr == f"error: RUN: {tmp_path / 'nowhere'} does not exist: name a run folder such as runs/seed0\n"
    with pytest.raises(UserError):
        main([str(run), "--out", str(tmp_path / "new" / "page.html" / "x.html")])
