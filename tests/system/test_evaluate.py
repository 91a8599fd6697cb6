"""`python -m t2ir1_ray.evaluate` on a real Ray cluster: the shipped policy and experts, and a local judge endpoint."""

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from t2ir1_ray import evaluate
from t2ir1_ray.benchmarks.devices import Devices
from t2ir1_ray.benchmarks.judge import Judge
from t2ir1_ray.config import SHIPPED, Config, ExpertConfig
from t2ir1_ray.errors import RunError, UserError
from t2ir1_ray.generate import checkpoint_config
from tests.system.evaluations import lines, summary

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
LIMIT = 24
JUDGES = {
    "vqa": ("git", str(SHIPPED / "git")),
    "detector": ("grounding_dino", str(SHIPPED / "grounding_dino")),
    "clip": ("clip", str(SHIPPED / "hps")),
}
"""Kind and checkpoint of every judge."""


@pytest.fixture(autouse=True)
def _connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.connect.connect", lambda cluster: None)


@pytest.fixture(scope="module")
def devices(local_ray: None) -> Iterator[Devices]:
    """A rollout actor with the shipped policy, and every judge that the benchmarks here need."""
    experts = {
        name: ExpertConfig(kind=kind, path=path, batch_size=8, num_gpus=0, num_cpus=0.1)
        for name, (kind, path) in JUDGES.items()
    }
    with Devices(checkpoint_config(None, None), experts, actors=1, judge=None) as started:
        yield started


@pytest.fixture
def standing(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations use `devices`, one after another, instead of starting actors of their own."""

    @contextmanager
    def lend(
        config: Config, experts: dict[str, ExpertConfig], actors: int | None, judge: Judge | None
    ) -> Iterator[Devices]:
        assert config == devices.cluster.config
        assert all((expert.kind, expert.path) == JUDGES[name] for name, expert in experts.items())
        devices.judge = judge
        with closing(judge) if judge else nullcontext():
            yield devices

    monkeypatch.setattr("t2ir1_ray.benchmarks.devices.Devices", lend)


@pytest.fixture(scope="module")
def finished(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole evaluation on the shapes world."""
    out = tmp_path_factory.mktemp("evaluate") / "shapes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.connect.connect", lambda cluster: None)
        evaluate.main(["--benchmark", "shapes", "--limit", str(LIMIT), "--out", str(out), "--seeds", "0", "1"])
    return out


def test_shapes_with_and_without_semantic_cot(finished: Path) -> None:
    records = [json.loads(line) for line in lines(finished)]
    keys = {(record["mode"], record["seed"], record["prompt_id"]) for record in records}
    assert len(keys) == len(records) == 2 * 2 * LIMIT
    for record in records:
        (image,) = record["images"]
        assert bool(image["plan"]) == (record["mode"] == "semantic-CoT")
        with Image.open(finished / image["image"]) as file:
            assert file.text["prompt"] == record["prompt"]
            assert file.text["plan"] == image["plan"]
    found = summary(finished)
    accuracy = found["figures"]["accuracy"]
    for mode in evaluate.MODES:
        right = [r["images"][0]["scores"]["accuracy"] for r in records if r["mode"] == mode]
        assert accuracy[mode]["mean"] == pytest.approx(sum(right) / len(right))
        assert accuracy[mode]["prompts"] == LIMIT
    assert accuracy["semantic-CoT"]["mean"] > 0
    assert accuracy["difference"]["mean"] == pytest.approx(
        accuracy["semantic-CoT"]["mean"] - accuracy["prompt only"]["mean"]
    )
    assert found["figures"]["plan is right"]["prompt only"] is None
    assert (finished / "row.md").read_text().count("| policy |") == 2


def test_an_interrupted_evaluation_goes_on_where_it_stopped(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    kept = lines(finished)[:13]
    (out / "settings.json").write_bytes((finished / "settings.json").read_bytes())
    (out / "results.jsonl").write_text("\n".join(kept) + "\n" + lines(finished)[13][:40])  # killed inside a line
    command = ["--benchmark", "shapes", "--limit", str(LIMIT), "--out", str(out), "--seeds", "0", "1", "--actors", "2"]
    evaluate.main(command)
    resumed = lines(out)
    assert resumed[:13] == kept
    assert len(resumed) == len(lines(finished))

    def by_key(of: list[str]) -> dict[Any, Any]:
        records = map(json.loads, of)
        return {(r["mode"], r["seed"], r["prompt_id"]): [i["plan"] for i in r["images"]] for r in records}

    assert by_key(resumed) == by_key(lines(finished))
    with pytest.raises(UserError, match="cfg"):
        evaluate.main([*command, "--cfg", "2"])
    evaluate.main([*command, "--against", str(finished)])  # the same checkpoint and seeds: no difference at all
    found = summary(out)["against"]["semantic-CoT"]["accuracy"]
    assert found["difference"] == {"mean": 0.0, "stderr": 0.0, "prompts": LIMIT, "p": 1.0}
    rows = (out / "row.md").read_text()
    assert (rows.count("| policy |"), rows.count("| policy (base) |")) == (2, 2)
    assert found["policy"] == found["policy (base)"] == summary(out)["figures"]["accuracy"]["semantic-CoT"]


def test_a_checkpoint_of_a_run_is_called_after_the_run() -> None:
    assert evaluate.label("runs/seed0/checkpoints/step_000120") == "seed0-step_000120"
    assert evaluate.label("deepseek-community/Janus-Pro-7B") == "Janus-Pro-7B"


def test_a_finished_evaluation_starts_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2ir1_ray.benchmarks.devices.Devices", None)
    before = lines(finished)
    evaluate.main(["--benchmark", "shapes", "--limit", str(LIMIT), "--out", str(finished), "--seeds", "0", "1"])
    assert lines(finished) == before


@pytest.mark.usefixtures("standing")
def test_geneval_with_a_detector_and_colors(tmp_path: Path) -> None:
    """Real judges end to end; the tiny CLIP of the shapes world only has to answer."""
    rows = [
        {"tag": "single_object", "include": [{"class": "red circle", "count": 1}], "prompt": "a red circle"},
        {"tag": "colors", "include": [{"class": "ring", "count": 1, "color": "blue"}], "prompt": "a blue ring"},
    ]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    judges = [
        "detector.kind=grounding_dino",
        f"detector.path={SHIPPED / 'grounding_dino'}",
        f"clip.path={SHIPPED / 'hps'}",
    ]
    experts = [part for judge in judges for part in ("--expert", judge)]
    evaluate.main(
        ["--benchmark", "geneval", "--prompts", str(file), "--plans", "with", "--temperature", "0.5", *experts]
        + ["--out", str(out), "--num-images", "8"]
    )
    single, colored = (json.loads(line)["images"] for line in lines(out))
    assert sum(image["scores"]["correct"] for image in single) >= 2
    assert any(image["evidence"]["found"] for image in colored)
    assert all(set(image["evidence"]["colors"]) == {"ring"} for image in colored)
    assert (out / "images/semantic-CoT/seed_0/00001/samples/0007.png").is_file()
    assert json.loads((out / "images/semantic-CoT/seed_0/00001/metadata.jsonl").read_text()) == rows[1]
    assert summary(out)["figures"]["overall"]["semantic-CoT"] is None  # four of its six tags are not there


@pytest.mark.usefixtures("standing")
def test_compbench_with_vqa_detector_and_clip(tmp_path: Path) -> None:
    prompts = tmp_path / "dataset"
    prompts.mkdir()
    (prompts / "color_val.txt").write_text("a red circle and a blue square\n")
    (prompts / "spatial_val.txt").write_text("a circle on the left of a square\n")
    (prompts / "numeracy_val.txt").write_text("two rings\n")
    (prompts / "non_spatial_val.txt").write_text("a green ring\n")
    out = tmp_path / "out"
    judges = ["vqa.kind=git", f"vqa.path={SHIPPED / 'git'}", f"detector.path={SHIPPED / 'grounding_dino'}"]
    experts = [part for judge in [*judges, f"clip.path={SHIPPED / 'hps'}"] for part in ("--expert", judge)]
    evaluate.main(
        ["--benchmark", "t2i_compbench", "--prompts", str(prompts), "--num-images", "2", "--out", str(out), *experts]
        + ["--plans", "without"]
    )
    records = {record["category"]: record for record in map(json.loads, lines(out))}
    assert set(records) == {"color", "spatial", "numeracy", "non_spatial"}
    for record in records.values():
        assert all(0 <= image["scores"]["score"] <= 1 for image in record["images"])
    assert len(records["color"]["images"][0]["evidence"]["answers"]) == 2
    assert records["numeracy"]["images"][1]["image"].endswith("numeracy/samples/two rings_000001.png")
    assert summary(out)["figures"]["color"]["prompt only"]["prompts"] == 1


class Endpoint(BaseHTTPRequestHandler):
    """Answers every prompt alike, save that p2 is never judged readably."""

    asked: list[tuple[str, Any]] = []
    broken = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.headers["Authorization"], body))
        text = body["messages"][1]["content"][0]["text"]
        marks = "no idea" if "two yellow rings" in text else "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        reply["choices"] = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": marks}}]
        data = json.dumps(reply).encode()
        self.send_response(401 if self.broken else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("standing")
def test_wise_asks_the_endpoint_that_was_named(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {1: "a red circle", 2: "two yellow rings", 401: "a green cross"}
    rows = [{"Prompt": text, "Explanation": f"because {i}", "prompt_id": i} for i, text in texts.items()]
    (tmp_path / "wise.json").write_text(json.dumps(rows))
    monkeypatch.setenv("JUDGE_KEY", "secret")
    out = tmp_path / "out"
    command = ["--benchmark", "wise", "--prompts", str(tmp_path / "wise.json"), "--plans", "with", "--out", str(out)]
    command += ["--judge-url", endpoint, "--judge-model", "seer", "--judge-key-env", "JUDGE_KEY"]
    monkeypatch.setattr(Endpoint, "broken", True)
    with pytest.raises(RunError, match="judge http"):
        evaluate.main(command)
    assert lines(out) == []

    monkeypatch.setattr(Endpoint, "broken", False)
    Endpoint.asked.clear()
    evaluate.main(command)
    assert len(Endpoint.asked) == 1 + 4 + 1  # an unreadable verdict is asked for three more times
    key, body = Endpoint.asked[0]
    assert key == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("seer", 0)
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as image:
        assert image.size == (24, 24)
    found = summary(out)
    assert found["figures"]["culture"]["semantic-CoT"]["mean"] == pytest.approx(0.8)
    assert found["figures"]["overall"]["semantic-CoT"] is None
    assert found["unreadable"] == {"semantic-CoT": 1}
    assert "secret" not in "".join(file.read_text() for file in out.glob("*.*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmark", "imagenet"], ["imagenet", "shapes"]),
        ([], ["--benchmark"]),
        (["--benchmark", "geneval"], ["--prompts", "evaluation_metadata.jsonl"]),
        (["--benchmark", "wise", "--prompts", "/nowhere"], ["/nowhere", "does not exist"]),
        (["--benchmark", "shapes", "--limit", "0"], ["--limit", "at least 1"]),
        (["--benchmark", "shapes", "--seeds", "1", "1"], ["--seeds", "twice"]),
        (["--benchmark", "shapes", "--checkpoint", "/nowhere"], ["/nowhere", "does not exist"]),
        (["--benchmark", "shapes", "--expert", "vqa.path=x"], ["--expert", "vqa"]),
        (["--benchmark", "shapes", "--num-images", "99999999999"], ["--num-images", "at most 10000"]),
        (["--benchmark", "geneval", "--prompts", "/dev/zero"], ["--prompts", "/dev/zero is no file"]),
        (["--benchmark", "wise", "--prompts", "x" * 5000], ["--prompts", "too long"]),
        (["--benchmark", "shapes", "rollout.actor=2"], ["rollout.actor", "rollout.actors"]),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        evaluate.main([*arguments, "--out", str(tmp_path / "out")])
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_judges_must_be_named(tmp_path: Path) -> None:
    file = tmp_path / "spatial_val.txt"
    file.write_text("a circle near a ring\n")
    with pytest.raises(UserError, match=r"--expert detector.path: missing"):
        evaluate.main(["--benchmark", "t2i_compbench", "--prompts", str(file)])
    with pytest.raises(UserError, match=r"--expert detector.path: /nowhere does not exist"):
        evaluate.main(["--benchmark", "t2i_compbench", "--prompts", str(file), "--expert", "detector.path=/nowhere"])
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no prompts"):
        evaluate.main(["--benchmark", "t2i_compbench", "--prompts", str(file)])
    file = tmp_path / "wise.json"
    file.write_text(json.dumps([{"Prompt": "a ring", "Explanation": "e", "prompt_id": 1}]))
    with pytest.raises(UserError, match="--judge-url"):
        evaluate.main(["--benchmark", "wise", "--prompts", str(file)])
    with pytest.raises(UserError, match="--judge-url: localhost: must begin with http"):
        evaluate.main(
            ["--benchmark", "wise", "--prompts", str(file), "--judge-url", "localhost", "--judge-model", "seer"]
        )


def test_bad_input_ends_with_exit_code_2() -> None:
    command = [sys.executable, "-m", "t2ir1_ray.evaluate", "--benchmark", "imagenet"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith("error: ")
