"""What a page is told about a run folder that changes: applied one after another, the messages give what is there."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ir1_ray import config
from t2ir1_ray.errors import UserError
from t2ir1_ray.report_page import read_run
from t2ir1_ray.report_page.follower import Follower, difference
from t2ir1_ray.report_page.tail import Tail
from tests.system.report_runs import write_run


class Mirror:
    """What a page would know: `follow.js` in Python."""

    def __init__(self, follower: Follower):
        self.follower = follower
        self.run: dict[str, Any] = {}
        self.samples: dict[int, Any] = {}
        self.notes: list[str] = []
        self.charts: list[str] = []
        self.look()
        for message in follower.first():
            self.take(json.loads(message))

    def look(self) -> list[dict[str, Any]]:
        messages = [json.loads(message) for message in self.follower.look()]
        while self.follower.samples.more:
            messages += [json.loads(message) for message in self.follower.look()]
        for message in messages if self.run else []:
            self.take(message)
        return messages

    def take(self, message: dict[str, Any]) -> None:
        if "base" in message:
            self.run, self.samples = message["base"]["runs"][0], {}
            self.charts = [chart["title"] for chart in message["base"]["charts"]]
        run = self.run
        if "cut" in message:
            kept = sum(step <= message["cut"] for step in run["steps"])
            run["steps"] = run["steps"][:kept]
            run["series"] = {key: values[:kept] for key, values in run["series"].items()}
            self.samples = {step: groups for step, groups in self.samples.items() if step <= message["cut"]}
        if "steps" in message:
            fresh = message["steps"]
            for key in {**run["series"], **message["series"]}:
                known = run["series"].get(key, [None] * len(run["steps"]))
                run["series"][key] = known + message["series"].get(key, [None] * len(fresh))
            run["steps"] = run["steps"] + fresh
        if "tiles" in message:
            begin, end = message["tiles"]["keep"]
            run["tiles"] = run["tiles"][begin:end] + message["tiles"]["add"]
        run |= {key: message[key] for key in ("now", "health", "config") if key in message}
        self.notes = message.get("notes", self.notes)
        self.charts = [chart["title"] for chart in message["charts"]] if "charts" in message else self.charts
        for step in message.get("drop", []):
            self.samples.pop(step, None)
        if "dump" in message:
            self.samples[message["dump"]] = message["groups"]

    def assert_whole(self) -> None:
        """It knows what a report that is written now would say."""
        read = read_run(self.follower.folder)
        assert self.run["steps"] == read.steps
        values = {key: column for key, column in self.run["series"].items() if set(column) != {None}}
        assert values == read.series
        assert self.run["config"] == read.config
        assert [tile["step"] for tile in self.run["tiles"]] == [tile["step"] for tile in read.history.tiles]
        assert json.loads(json.dumps(read.history.tiles)) == self.run["tiles"]


def append(folder: Path, step: int, lanes: bool = True, **figures: float) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": step / 10, **figures}) + "\n")
    if lanes:
        tell(folder, "step", step, ms=1000, lanes={"rollout 0": [["generate", 0, 800 + step]]})


def tell(folder: Path, kind: str, step: int, **facts: Any) -> None:
    with (folder / "activity.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, "step": step, "at": 1000.0 + step, **facts}) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", steps=6)


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    mirror = Mirror(Follower(tmp_path, 64))
    assert mirror.run["health"]["state"] == "waiting"
    assert mirror.run["steps"] == []
    config.save(config.load("shapes", ["train.steps=6"]), tmp_path / "config.yaml")
    (tmp_path / "metrics.jsonl").touch()
    mirror.look()
    assert mirror.run["config"]["train.steps"] == "6"
    append(tmp_path, 0)
    append(tmp_path, 1, kl=0.5)
    mirror.look()
    mirror.assert_whole()
    assert mirror.run["series"]["kl"] == [None, 0.5]
    assert mirror.charts == ["KL", "Loss and gradient"]
    assert mirror.look() == [], "nothing new, nothing told"


def test_only_what_was_appended_is_read_and_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(Follower(run, 64))
    mirror.assert_whole()
    read = []
    monkeypatch.setattr(
        "t2ir1_ray.report_page.runs._record", lambda line, where: read.append(where) or json.loads(line)
    )
    append(run, 7)
    (message,) = mirror.look()
    assert message["steps"] == [7]
    assert [where.rpartition(":")[2] for where in read] == ["8"]


def test_a_torn_line_waits_for_its_end(run: Path) -> None:
    mirror = Mirror(Follower(run, 64))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
        file.flush()
        assert mirror.look() == []
        file.write('ss": 0.5}\n{"st')
    mirror.look()
    assert mirror.run["steps"][-1] == 7
    assert mirror.run["series"]["loss"][-1] == 0.5
    assert mirror.notes == []


def resume(run: Path, step: int) -> None:
    """As a journal that goes on behind a checkpoint: the metrics are another file, later dumps are gone."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    (run / "aside").write_text("".join(kept))
    (run / "aside").replace(run / "metrics.jsonl")
    for dump in run.glob("rollouts/step_*.parquet"):
        if dump.stem > f"step_{step:06d}":
            dump.unlink()
    tell(run, "began", step, steps=6)


@pytest.mark.parametrize("looks", [True, False], ids=["seen", "between two looks"])
def test_a_run_that_is_killed_and_resumed(run: Path, looks: bool) -> None:
    """Also if it has made the same steps again, with other figures, before somebody looks."""
    for step in range(1, 7):
        tell(run, "step", step, ms=1000, lanes={"rollout 0": [["generate", 0, 500]]})
    mirror = Mirror(Follower(run, 64))
    assert sorted(mirror.samples) == [1, 2, 3, 4, 5, 6]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "torn')
    dump = (run / "rollouts/step_000001.parquet").read_bytes()
    resume(run, 4)
    if looks:
        mirror.look()
        mirror.assert_whole()
        assert mirror.run["steps"] == [0, 1, 2, 3, 4]
        assert sorted(mirror.samples) == [1, 2, 3, 4]
        assert mirror.run["health"]["resumed"] == [4]
    for step in (5, 6):
        append(run, step, loss=-step)
        (run / f"rollouts/step_{step:06d}.parquet").write_bytes(dump)
    messages = mirror.look()
    mirror.assert_whole()
    assert mirror.run["series"]["loss"][-2:] == [-5, -6]
    assert sorted(mirror.samples) == [1, 2, 3, 4, 5, 6]
    assert mirror.samples[5] == mirror.samples[1], "the samples that were made again"
    assert looks != any("cut" in message for message in messages)


def test_another_run_in_its_place(run: Path) -> None:
    mirror = Mirror(Follower(run, 64))
    shutil.rmtree(run)
    mirror.look()
    assert mirror.run["steps"] == []
    write_run(run, steps=3, seed=5)
    mirror.look()
    mirror.assert_whole()
    assert sorted(mirror.samples) == [1, 2, 3]
    assert mirror.run["config"]["train.seed"] == "5"


def test_a_broken_line_and_a_broken_dump_are_said_and_the_rest_goes_on(run: Path) -> None:
    mirror = Mirror(Follower(run, 64))
    with (run / "metrics.jsonl").open("a") as file:
        file.write("oops\n")
    append(run, 7)
    (run / "rollouts/step_000007.parquet").write_bytes(b"PAR1oops")
    (run / "config.yaml").write_text("a: [1")
    mirror.look()
    assert mirror.run["steps"][-1] == 7
    assert len(mirror.notes) == 3
    assert "metrics.jsonl:8 is not a JSON object" in mirror.notes[1]
    assert "step_000007.parquet is not whole" in mirror.notes[2]
    shutil.copy(run / "rollouts/step_000001.parquet", run / "rollouts/step_000007.parquet")
    mirror.look()
    assert 7 in mirror.samples
    assert len(mirror.notes) == 2


def test_the_newest_samples_that_fit_are_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=9)
    size = len(json.dumps(Mirror(Follower(run, 64)).samples[9]))
    mirror = Mirror(Follower(run, 3.5 * size / 1e6))
    assert sorted(mirror.samples) == [7, 8, 9]
    assert mirror.notes == ["Samples of the newest 3 of 9 dumped steps are kept: a larger --max-mb keeps more."]
    shutil.copy(run / "rollouts/step_000001.parquet", run / "rollouts/step_000010.parquet")
    mirror.look()
    assert sorted(mirror.samples) == [8, 9, 10]
    assert sorted(Mirror(mirror.follower).samples) == [8, 9, 10], "for a page that is opened now"
    assert Mirror(Follower(run, 0.001)).samples == {}
    for bound in (0, -1, float("nan")):
        with pytest.raises(UserError, match="--max-mb"):
            Follower(run, bound)


def test_what_an_actor_does_now(run: Path) -> None:
    mirror = Mirror(Follower(run, 64))
    lanes = {"rollout 0": [["generate", 0, 300]], "learner 0": []}
    now = {"kind": "now", "step": 6, "at": 5.0, "ms": 300, "lanes": lanes, "at_work": {"rollout 0": ["generate", 300]}}
    (run / "now.json").write_text(json.dumps(now))
    mirror.look()
    assert mirror.run["now"]["at_work"] == {"rollout 0": ["generate", 300]}
    assert mirror.run["now"]["front"] == [["rollout 0", 0, 300]]
    (run / "now.json").unlink()
    mirror.look()
    assert mirror.run["now"] is None


def test_no_folder_and_odd_files(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Follower(tmp_path / "nowhere", 64)
    for name in ("metrics.jsonl", "config.yaml"):
        (run / name).unlink()
    os.mkfifo(run / "metrics.jsonl")
    (run / "config.yaml").symlink_to("/dev/zero")
    (run / "activity.jsonl").mkdir()
    (run / "now.json").write_text("[]")
    mirror = Mirror(Follower(run, 64))
    assert mirror.run["steps"] == []
    assert mirror.run["now"] is None


STEPS = st.dictionaries(st.integers(0, 8), st.dictionaries(st.sampled_from("ab"), st.floats(0, 1), min_size=1))


@given(STEPS, STEPS)
def test_a_difference_makes_one_journal_of_another(before: dict, after: dict) -> None:
    told = difference(before, after)
    left = {step: values for step, values in before.items() if step <= told.get("cut", 99)}
    fresh = {
        step: {key: column[i] for key, column in told["series"].items() if column[i] is not None}
        for i, step in enumerate(told["steps"])
    }
    assert left | fresh == after
    assert not left.keys() & fresh.keys()
    assert sorted(left | fresh) == sorted(left) + told["steps"], "what is told continues what is left"


@given(st.lists(st.binary(max_size=6).filter(lambda part: b"\n" not in part), max_size=6), st.data())
def test_a_tail_gives_every_line_once(parts: list[bytes], data: st.DataObject) -> None:
    """However the writes are cut."""
    content = b"".join(part + b"\n" for part in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"tail-{os.getpid()}"
    path.write_bytes(b"")
    tail, found = Tail(path), []
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[begin:end])
        anew, lines = tail.read()
        assert not anew
        found += lines
    path.unlink()
    assert b"".join(found) == content
    assert all(line.endswith(b"\n") for line in found)


def test_a_tail_notices_another_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_bytes(b"a\nb\n")
    assert tail.read() == (False, [b"a\n", b"b\n"])
    os.truncate(path, 2)  # in place
    assert tail.read() == (True, [b"a\n"])
    path.write_bytes(b"x\ny\nz\n")  # in place, and longer than before
    assert tail.read() == (True, [b"x\n", b"y\n", b"z\n"])
    (tmp_path / "aside").write_bytes(b"x\ny\nz\nmore\n")
    (tmp_path / "aside").replace(path)
    assert tail.read() == (True, [b"x\n", b"y\n", b"z\n", b"more\n"])
    path.unlink()
    assert tail.read() == (True, [])
    assert tail.read() == (False, [])
