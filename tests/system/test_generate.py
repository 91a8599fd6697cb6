"""`python -m t2ir1_ray.generate` on the shipped shapes policy: files, metadata, plans, seeds, bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from actors.sampler import Sampler
from actors.sampling import Sampling
from t2ir1_ray import config, generate
from t2ir1_ray.errors import UserError
from t2ir1_ray.shapes.verify import image_follows_plan

pytestmark = pytest.mark.slow
PROMPTS = ["a red circle above a blue square", "two yellow rings", "a green cross"]


@pytest.fixture(scope="module")
def actor() -> Iterator[Sampler]:
    with generate.engine(generate.checkpoint_config(None, None)) as actor:
        yield actor


def test_the_command_needs_nothing_but_a_prompt(tmp_path: Path) -> None:
    """It stands before what uses `actor`: a process has one engine at a time."""
    file = tmp_path / "prompts.txt"
    file.write_text("two yellow rings\n\na green cross\n")
    out = tmp_path / "out"
    generate.main(["a red circle", "--prompts", str(file), "--out", str(out), "--temperature", "0"])
    assert len(list(out.glob("0000?_0.png"))) == 3
    assert (out / "grid.png").is_file()
    with pytest.raises(UserError, match="holds results already"):
        generate.main(["a red circle", "--out", str(out)])


def sampling(count: int = 2, **changes: Any) -> Sampling:
    return Sampling(**{"group_size": count, "temperature": 1.0, "guidance": 1.0, "seed": 3, "stream": "t"} | changes)


def pixels(out: Path, record: dict[str, Any]) -> np.ndarray:
    with Image.open(out / record["image"]) as image:
        return np.asarray(image)


def draw(actor: Sampler, out: Path, prompts: list[str], how: Sampling, batch_size: int) -> list[dict[str, Any]]:
    out.mkdir()
    return generate.draw(actor, prompts, how, batch_size, out, {"checkpoint": "shapes"})


def test_an_image_depends_on_its_prompt_and_seed_only(actor: Sampler, tmp_path: Path) -> None:
    together = draw(actor, tmp_path / "a", PROMPTS, sampling(), batch_size=6)
    apart = draw(actor, tmp_path / "b", PROMPTS[::-1], sampling(), batch_size=1)
    found = {(r["prompt"], r["sample"]): (r["plan"], pixels(tmp_path / "b", r)) for r in apart}
    assert len(together) == len(apart) == 6
    for record in together:
        plan, image = found[record["prompt"], record["sample"]]
        assert record["plan"] == plan
        assert np.array_equal(pixels(tmp_path / "a", record), image)
    other = draw(actor, tmp_path / "c", PROMPTS, sampling(seed=4), batch_size=6)
    assert [r["plan"] for r in other] != [r["plan"] for r in together]


def test_files_and_metadata_say_how_an_image_was_made(actor: Sampler, tmp_path: Path) -> None:
    out = tmp_path / "out"
    records = draw(actor, out, PROMPTS, sampling(), batch_size=4)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert lines == records
    for record in records:
        with Image.open(out / record["image"]) as image:
            text = image.text
        assert text["plan"] == record["plan"]
        assert text["prompt"] == record["prompt"]
        assert (text["seed"], text["sample"]) == ("3", str(record["sample"]))
    generate.write_grid(out, records, columns=2)
    with Image.open(out / "grid.png") as grid:
        assert grid.width >= 2 * generate.TILE_PX
        assert grid.height > 3 * generate.TILE_PX


def test_an_own_plan_is_drawn_and_no_plan_is_none(actor: Sampler, tmp_path: Path) -> None:
    plan = "red circle upper left , blue square lower left ."
    given = draw(actor, tmp_path / "given", PROMPTS[:1], sampling(16, plan=plan, temperature=0.5), batch_size=16)
    assert {r["plan"] for r in given} == {plan}
    followed = [image_follows_plan(plan, pixels(tmp_path / "given", r)) for r in given]
    assert np.mean(followed) > 0.25  # another plan's places would be hit by chance once in 72
    plain = draw(actor, tmp_path / "none", PROMPTS[:1], sampling(16, semantic_cot=False), batch_size=16)
    assert {(r["plan"], r["plan_source"]) for r in plain} == {("", "none")}
    assert not np.mean([image_follows_plan(plan, pixels(tmp_path / "none", r)) for r in plain]) > 0.25
    samples = actor.sample([{"prompt_id": "0", "prompt": PROMPTS[0]}], [0], sampling(1, semantic_cot=False))
    assert len(samples.semantic_ids[0]) == 0
    assert samples.image_prompt_ids[0].tolist() == actor.format.image_prompt_ids(PROMPTS[0], None)


def test_too_long_and_unknown_prompts(actor: Sampler, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = generate.checkpoint_config(None, None)
    with pytest.raises(UserError, match="max_prompt_tokens=40"):
        generate.check_tokens(["red " * 60], actor.format, shapes)
    generate.check_tokens(["a red dragon"], actor.format, shapes)
    assert "red dragon" in capsys.readouterr().err


def test_a_plan_of_ones_own_is_no_longer_than_the_policys(actor: Sampler) -> None:
    shapes = generate.checkpoint_config(None, None)
    generate.check_plan("red " * 40, actor.format, shapes)
    with pytest.raises(UserError, match=r"--plan: 41 tokens, over policy.max_plan_tokens=40"):
        generate.check_plan("red " * 41, actor.format, shapes)


def test_captions_stay_inside_their_column() -> None:
    font = ImageFont.load_default(13)
    texts = ["W" * 200, "a b c " * 200, "wide " + "M" * 90 + " words", "short", ""]
    for text in texts:
        lines = generate.wrap(text, 240, font)
        assert 1 <= len(lines) <= 6
        assert all(font.getlength(line) <= 240 for line in lines)
        whole = "".join(lines).replace(" ", "")
        assert whole == text.replace(" ", "") or whole.endswith("...")
    assert generate.wrap("a b c " * 200, 240, font)[-1].endswith(" ...")


def test_a_checkpoint_of_a_run_brings_its_prompt_format(tmp_path: Path) -> None:
    shipped = Path(config.load().policy.path)
    folder = tmp_path / "run" / "checkpoints" / "step_000001"
    shutil.copytree(shipped, folder)
    (tmp_path / "run" / "config.yaml").write_text("policy: {path: elsewhere, max_plan_tokens: 7}\n")
    with pytest.raises(UserError, match="data.prompts"):  # not a whole configuration
        generate.checkpoint_config(str(folder), None)
    config.save(config.load("shapes", ["policy.max_plan_tokens=7"]), tmp_path / "run" / "config.yaml")
    found = generate.checkpoint_config(str(folder), None)
    assert (found.policy.path, found.policy.max_plan_tokens) == (str(folder), 7)
    assert generate.checkpoint_config(str(folder), "shapes").policy.max_plan_tokens == 40


def test_how_a_strange_checkpoint_is_prompted_is_not_guessed(tiny_janus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^--config: {tiny_janus} is neither built like the shapes policy nor a run's"):
        generate.checkpoint_config(str(tiny_janus), None)
    moved = tmp_path / "moved"  # out of its run
    shutil.copytree(config.load().policy.path, moved)
    assert generate.checkpoint_config(str(moved), None).policy.path == str(moved)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no prompt"]),
        (["  "], ["is empty"]),
        (["a ring", "--plan", "x", "--no-plan"], ["--plan", "--no-plan"]),
        (["a ring", "--plan", "\udcff"], ["--plan", "no text"]),  # bytes of an argument that are no UTF-8
        (["a ring", "--num-images", "0"], ["--num-images", "at least 1"]),
        (["a ring", "--num-images", "99999999999"], ["--num-images", "at most 10000"]),
        (["a ring", "--cfg", "0.5"], ["--cfg", "at least 1"]),
        (["a ring", "--cfg", "strong"], ["--cfg", "strong"]),
        (["a ring", "--cfg", "1e300"], ["--cfg", "at most 100"]),
        (["a ring", "--temperature", "nan"], ["--temperature"]),
        (["a ring", "--temperature", "1e-9"], ["--temperature", "0 (greedy) or at least 0.01"]),
        (["a ring", "--colour"], ["--colour"]),
        (["a ring", "--checkpoint", "/nowhere"], ["/nowhere", "does not exist"]),
        (["a ring", "--config", "nowhere"], ["nowhere", "shapes"]),
        (["--prompts", "missing.txt"], ["missing.txt"]),
        (["--prompts", "/dev/zero"], ["--prompts", "/dev/zero is no file"]),
        (["a ring", "--out", "x" * 300], ["--out", "too long"]),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        generate.main(["--out", str(tmp_path / "out"), *arguments])
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_bad_input_ends_with_exit_code_2() -> None:
    command = [sys.executable, "-m", "t2ir1_ray.generate", "a ring", "--colour"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith("error: ")
