"""`python -m tests.gpu --tiny`: every part of the check of one GPU runs on a CPU, by the code that runs there."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from actors.image_decoder import ImageDecoder
from tests.actors.plain_images import PAD, image_prompts, unconditional
from tests.gpu.__main__ import PARTS, run_part
from tests.gpu.decode import official_loop
from tests.tiny_janus import IMAGE_TOKENS, tiny_model
from tests.torch_trunk import TorchTrunk

NO_RAY_NO_VLLM = """
import sys
sys.modules.update(dict.fromkeys(("ray", "vllm", "deepspeed", "open_clip")))
import actors.expert, actors.image_decoder, actors.reference, actors.sampling, actors.weights, learner.rank
"""


@pytest.mark.parametrize("part", [part for part in PARTS if part != "deepspeed"])
def test_every_part_has_figures_and_no_error(part: str) -> None:
    found = list(import_module(f"tests.gpu.{part}").figures(tiny=True))
    assert found
    assert json.loads(json.dumps(found)) == found
    for figure in found:
        assert not figure.keys() & {"error", "refused", "skipped"}, figure
        assert figure.get("relative_difference", 0) < 0.05
        assert figure.get("as_cpu", True), figure
        if figure.get("dtype") == "float32":
            assert figure.get("max_abs_difference", 0) < 1e-4


def test_the_command_writes_what_the_parts_found(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, "-m", "tests.gpu", "--tiny", "--only", "deepspeed", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    assert json.loads(done.stdout) == written
    (learner,) = written["parts"]["deepspeed"]["figures"]
    assert all(learner[f"{runs}_run{s}_equal_bits"] for runs, s in (("equal", "s"), ("resumed", "")))


def test_a_part_that_fails_or_hangs_is_recorded_with_what_it_had_found() -> None:
    finds = "import sys, time; print('{\"ms\": 1}', file=open(sys.argv[1], 'w'), flush=True)"
    failed = run_part([sys.executable, "-c", f"{finds}; sys.exit('no such kernel')"], 60)
    hung = run_part([sys.executable, "-c", f"{finds}; time.sleep(60)"], 3)
    assert failed["figures"] == hung["figures"] == [{"ms": 1}]
    assert "no such kernel" in failed["error"]
    assert hung["error"] == "not over after 3 s"


def test_the_official_loop_draws_the_decoders_images() -> None:
    model, prompts = tiny_model(), image_prompts()
    free = list(map(unconditional, prompts))
    ours = ImageDecoder(TorchTrunk(model), PAD, IMAGE_TOKENS).generate(prompts, free, range(4), 5.0, temperature=0.0)
    theirs = official_loop(model, prompts, free, IMAGE_TOKENS, 5.0, greedy=True)
    assert theirs.tolist() == ours.ids.tolist()


def test_what_runs_there_imports_without_ray_and_vllm() -> None:
    done = subprocess.run([sys.executable, "-c", NO_RAY_NO_VLLM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
