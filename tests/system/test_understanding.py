"""`python -m t2ir1_ray.evaluate --benchmark understanding` on a real Ray cluster, with the shipped policy."""

import json
from pathlib import Path

import pytest
from PIL import Image

from t2ir1_ray import evaluate
from t2ir1_ray.benchmarks import understanding
from t2ir1_ray.benchmarks.pope import says_yes
from t2ir1_ray.errors import UserError
from t2ir1_ray.generate import checkpoint_config
from t2ir1_ray.janus.answerer import Answerer
from t2ir1_ray.shapes.questions import KINDS
from tests.system.evaluations import lines, summary

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
LIMIT = 24
COMMAND = ["--benchmark", "understanding", "--limit", str(LIMIT)]


@pytest.fixture(autouse=True)
def _connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.connect.connect", lambda cluster: None)


@pytest.fixture(scope="module")
def finished(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole evaluation of the questions about shapes."""
    out = tmp_path_factory.mktemp("understanding") / "shapes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.connect.connect", lambda cluster: None)
        evaluate.main([*COMMAND, "--out", str(out)])
    return out


def test_the_checkpoint_is_asked_every_question(finished: Path) -> None:
    asked = understanding.shape_questions()[:LIMIT]
    answerer = Answerer(checkpoint_config(None, None).policy)  # in this process, one question at a time
    records = [json.loads(line) for line in lines(finished)]
    assert [record["prompt_id"] for record in records] == [question.prompt_id for question in asked]
    for record, question in zip(records, asked, strict=True):
        assert record["said"] == answerer.answer([question.pixels()], [question.text])[0]
        assert record["answer"] == ("yes" if says_yes(record["said"]) else "no")
        assert (record["label"] == "yes") == question.answer
    found = summary(finished)
    right = [record["answer"] == record["label"] for record in records]
    assert found["figures"]["accuracy"]["greedy"]["mean"] == pytest.approx(sum(right) / LIMIT)
    assert [found["figures"][f"{kind}: yes ratio"]["greedy"]["prompts"] for kind in KINDS] == [LIMIT // 3] * 3
    assert found["checkpoint_digest"]
    assert (finished / "row.md").read_text().count("| policy | greedy |") == 1


def test_an_interrupted_evaluation_goes_on_and_is_compared_with_another(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    kept = lines(finished)[:19]
    (out / "settings.json").write_bytes((finished / "settings.json").read_bytes())
    (out / "results.jsonl").write_text("\n".join(kept) + "\n" + lines(finished)[19][:40])  # killed inside a line
    evaluate.main([*COMMAND, "--out", str(out), "--actors", "2", "--against", str(finished)])
    assert lines(out) == lines(finished)
    compared = summary(out)["against"]["greedy"]
    for name in ("accuracy", "random: F1", "yes ratio"):
        if compared[name]["policy"]:
            assert compared[name]["difference"] == pytest.approx(
                {"mean": 0.0, "stderr": 0.0, "prompts": LIMIT // 3 if ":" in name else LIMIT, "p": 1.0}
            )
    rows = (out / "row.md").read_text()
    assert (rows.count("| policy | greedy |"), rows.count("| policy (base) | greedy |")) == (1, 1)
    with pytest.raises(UserError, match="question_template"):
        evaluate.main([*COMMAND, "--out", str(out), "policy.question_template='{image} {question}'"])


def test_a_finished_evaluation_starts_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2ir1_ray.benchmarks.asking.Answerers", None)
    before = lines(finished)
    evaluate.main([*COMMAND, "--out", str(finished)])
    assert lines(finished) == before


def test_popes_files_get_the_answers_of_the_same_questions(finished: Path, tmp_path: Path) -> None:
    questions, images = tmp_path / "questions", tmp_path / "images"
    questions.mkdir()
    images.mkdir()
    rows: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for number, asked in enumerate(understanding.shape_questions()[:LIMIT]):
        Image.fromarray(asked.pixels()).save(images / f"{number}.png")
        label = "yes" if asked.answer else "no"
        row = {"question_id": number, "image": f"{number}.png", "text": asked.text, "label": label}
        rows[asked.category].append(json.dumps(row))
    for kind, found in rows.items():
        (questions / f"shapes_pope_{kind}.json").write_text("\n".join(found))
    out = tmp_path / "out"
    command = ["--benchmark", "understanding", "--prompts", str(questions), "--images", str(images), "--out", str(out)]
    evaluate.main(command)
    said = [json.loads(line)["said"] for line in lines(out)]
    assert said == [json.loads(line)["said"] for line in lines(finished)]
    assert summary(out)["figures"] == summary(finished)["figures"]
    with pytest.raises(UserError, match="prompts_sha256"):
        evaluate.main([*COMMAND, "--out", str(tmp_path / "other"), "--against", str(out)])
    (images / "3.png").unlink()
    with pytest.raises(UserError, match=r"shapes_pope_random.json:2: image='3.png'"):
        evaluate.main(command)
