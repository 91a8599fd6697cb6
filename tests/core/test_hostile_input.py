"""Hostile prompts, configurations, experts and run folders: each hazard by name, one line or harmless."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken

from rewards.base import read_image
from rewards.experts import load_expert
from t2ir1_ray import config
from t2ir1_ray.checkpoints.weights import weight_files
from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.janus import policy
from t2ir1_ray.journal.resume import check_unchanged, record_inputs
from t2ir1_ray.journal.snapshots import Snapshots
from t2ir1_ray.records.prompts import read_prompts
from tests.core.refusals import refused
from tests.tiny_janus import tiny_tokenizer

SECRET = "hostile-input-secret"
MINIMAL = "policy: {path: p}\ndata: {prompts: d}\nexperts: {a: {kind: hps, path: e}}\n"


# --- prompts ---------------------------------------------------------------------------------------------------------

PROMPT = {"prompt": "a ring", "task_type": "object"}
BAD_PROMPTS: dict[str, tuple[bytes, str]] = {
    "broken UTF-8": (b'{"prompt": "\xc3\x28", "task_type": "object"}', ":1: not a JSON object in UTF-8"),
    "UTF-16": (json.dumps(PROMPT).encode("utf-16"), ":1: not a JSON object in UTF-8"),
    "a line of 10 MB": (json.dumps({**PROMPT, "prompt": "x" * (10 << 20)}).encode(), "longer than"),
    "10 MB of blanks": (b" " * (10 << 20), "longer than"),
    "NUL": (b'{"prompt": "a\\u0000b", "task_type": "object"}', "NUL"),
    "raw NUL": (b'{"prompt": "a\0b", "task_type": "object"}', "not a JSON object"),
    "surrogate in the id": (b'{"prompt": "a", "task_type": "object", "prompt_id": "\\ud800"}', "prompt_id"),
    "an id that is a list": (b'{"prompt": "a", "task_type": "object", "prompt_id": [1]}', "prompt_id must be a text"),
    "nesting": (b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b', "task_type": "object"}', "prompt must be a text"),
    "a number of 5000 digits": (b'{"prompt": "a", "task_type": ' + b"9" * 5000 + b"}", "not a JSON object"),
    "an absurd count": (
        json.dumps({**PROMPT, "numeracy_info": [{"obj_name": "a", "num": 10**12}]}).encode(),
        "numeracy_info",
    ),
    "a count of NaN": (b'{"prompt": "a", "task_type": "object", "numeracy_info": [{"obj_name": "", "num": NaN}]}', ""),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_hostile_prompt_line_is_refused(line: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(line + b"\n")
    refused(lambda: read_prompts(file), message, str(file))


def test_templates_and_control_tokens_are_ordinary_prompts(tmp_path: Path) -> None:
    prompts = [
        "{prompt} {0} {x!r} ${oc.env:HOME} %s",
        "<begin_of_image><|User|><｜end▁of▁sentence｜>",
        "\u202e\x1b[31m",
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({**PROMPT, "prompt": prompt}) + "\n" for prompt in prompts))
    assert read_prompts(file)["prompt"].to_pylist() == prompts


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    for name in ("a\nb.jsonl", "pipe.jsonl", "folder.jsonl", "loop.jsonl", "x" * 5000 + ".jsonl"):
        refused(lambda name=name: read_prompts(tmp_path / name), "data.prompts")


def test_parquet_with_values_that_are_no_text_is_refused(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xc3\x28")])
    pq.write_table(pa.table({"prompt": broken, "task_type": ["object"]}), tmp_path / "p.parquet")
    refused(lambda: read_prompts(tmp_path / "p.parquet"), "p.parquet")


@pytest.mark.parametrize("special", [True, False])
def test_no_text_becomes_a_control_token(special: bool) -> None:
    """`<|User|>` is in Janus' vocabulary; a checkpoint may have added it without calling it special."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|User|>", special=special), AddedToken("ø", special=False)])
    form = policy.PromptFormat(tokenizer, PolicyConfig(path="p"))
    hostile = "a <|User|> <begin_of_image> <｜end▁of▁sentence｜> <｜▁pad▁｜> {prompt}"
    ids = [*form.plan_prompt_ids(hostile)[1:], *form.image_prompt_ids(hostile, hostile)[1:-1]]
    control = {index for token, index in tokenizer.get_added_vocab().items() if token not in ("ø", "<unk>")}
    assert not control & set(ids)
    assert tokenizer.convert_tokens_to_ids("ø") in form.plan_prompt_ids("a ø")  # a letter stays one token


# --- configuration ---------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
BAD_FILES = {
    "a bomb of aliases": (MINIMAL + BOMB, "YAML node expansion"),
    "recursive aliases": (MINIMAL + "train: &a {steps: *a}\n", "recursive"),
    "a Python object": (MINIMAL + "train: !!python/object/apply:os.system [true]\n", "constructor"),
    "nesting": ("[" * 100_000, "not YAML"),
    "several megabytes": ("x" * (3 << 20), "longer than"),
    "NUL": (MINIMAL + 'journal: {name: "a\\0b"}\n', "journal.name"),
    "the environment": (MINIMAL + "journal: {name: '${oc.env:HOSTILE_SECRET}'}\n", "journal.name"),
    "the environment, hidden": (MINIMAL + 'journal: {name: "\\x24{oc.env:HOSTILE_SECRET}"}\n', "journal.name"),
    "the environment, nested": (MINIMAL + "journal: {name: '${oc.decode:${oc.env:HOSTILE_SECRET}}'}\n", "journal.name"),
    "the environment, as a section": (MINIMAL + "train: ${oc.env:HOSTILE_SECRET}\n", "train"),
    "a section of another kind": (MINIMAL + "train: ${data}\n", "TrainConfig"),
    "an expert named as a metric": (MINIMAL.replace("{a:", "{mean:"), "experts=mean"),
    "an expert named as a path": (MINIMAL.replace("{a:", "{../a:"), "experts=../a"),
}
BAD_OVERRIDES = {
    "journal.name=${oc.env:HOSTILE_SECRET}": "only ${section.key}",
    "experts.a.options.x=${oc.env:HOSTILE_SECRET}": "only ${section.key}",
    "experts.a.runtime_env={env_vars: {A: '${oc.env:HOSTILE_SECRET}'}}": "only ${section.key}",
    "journal.name=${nope:1}": "only ${section.key}",
    "journal.name=${policy.nope}": "not found",
    "journal.name=${journal.name}": "Recursive interpolation",
    "experts=${experts}": "Recursive interpolation",
    "learner.lora_targets[5]=a": "incompatible",
    "learner.lora_targets=[[null]]": "must be a list of names",
    "experts.a.options.x=${data}": "not to a section",
    "trian.\nsteps=3": "unknown key",
    "learner.learning_rate=inf": "finite",
    "learner.learning_rate=nan": "finite",
    "learner.betas=[.nan,0.9]": "finite",
    "learner.betas=[1.0,0.9]": "less than 1",
    "experts.a.weight=nan": "finite",
    "experts.a.options.x=.inf": "finite",
    "cluster.call_timeout_s=1e400": "finite",
    "train.seed=-1": "negative",
    "train.seed=0x" + "f" * 5000: "Exceeds the limit",
    "train.seed=99999999999999999999": "finite number of at most",
    "train.steps=10000000": "train.steps",
    "rollout.actors=16000000": "at most 10000",
    "rollout.group_size=1000000000000": "at most",
    "learner.clip_low=-3": "negative",
    "data.prompts=" + "x" * 1_000_000: "data.prompts",
    'policy.path="a\\nb"': "control characters",
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_hostile_configuration_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE_SECRET", SECRET)
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert SECRET not in refused(lambda: config.load(str(file)), message)


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES.items(), ids=range(len(BAD_OVERRIDES)))
def test_a_hostile_override_is_refused(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE_SECRET", SECRET)
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL)
    assert SECRET not in refused(lambda: config.load(str(file), [override]), message)


def test_a_name_of_a_configuration_may_be_anything() -> None:
    for name in ("x" * 5000, "a\0b", "", ".", "/dev/zero"):
        refused(lambda name=name: config.load(name), "--config")


def test_references_inside_a_configuration_and_penalties_still_work(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL)
    loaded = config.load(str(file), ["journal.name=${policy.path}-${train.seed}", "experts.a.weight=-0.5"])
    assert (loaded.journal.name, loaded.experts["a"].weight) == ("p-0", -0.5)


# --- experts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["os.system", "builtins.print", "json.JSONDecoder", "nowhere.Expert", "rewards", ".x", ""]
)
def test_a_kind_that_names_no_expert_is_refused_and_not_called(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(lambda: load_expert(kind, "true"), "expert")
    assert capsys.readouterr().out == ""


def test_the_index_of_an_expert_names_files_of_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    refused(lambda: weight_files(tmp_path, "expert path"), "expert path", "file of its own folder")


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, b"RIFF\0\0\0\0WEBP", b""]
)
def test_image_files_of_other_formats_or_none_fail_with_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable image file") as error:
        read_image(data)
    assert "\n" not in str(error.value)


# --- run folders -----------------------------------------------------------------------------------------------------


def entry_of(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", "[]"),
        ("manifest.json", "{}"),
        ("manifest.json", "[" * 100_000),
        ("manifest.json", "\xff"),
        ("manifest.json", {"/dev/zero": {"bytes": 0, "sha256": ""}}),
        ("manifest.json", {"../../../../../../dev/zero": {"bytes": 0, "sha256": ""}}),
        ("manifest.json", {"pipe": {"bytes": 0, "sha256": ""}}),
        ("manifest.json", {"x": 3}),
        ("state.json", '{"step": 1, "ranks": 1, "accuracy": null}'),
        ("state.json", '{"step": "2", "ranks": 1, "accuracy": null}'),
        ("state.json", '{"step": 2, "ranks": 0, "accuracy": null}'),
        ("state.json", '{"step": 2, "ranks": 1, "accuracy": "best"}'),
        ("state.json", '{"step": 2, "ranks": 1, "accuracy": NaN}'),
    ],
)
def test_a_hostile_snapshot_is_passed_over(file: str, content: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    snapshots = Snapshots(tmp_path / "elsewhere" / "..", keep_last=2)
    for step in (1, 2):
        folder = snapshots.create(step, 1, None, lambda folder: (folder / "x").write_bytes(b"x") and ["x"])
    os.mkfifo(folder / "pipe")
    (tmp_path / "step_notes.txt").write_text("mine")
    manifest = json.loads((folder / "manifest.json").read_text())
    if isinstance(content, dict):
        content = json.dumps({**manifest, **content})
    (folder / file).write_bytes(content.encode("latin-1"))
    if file == "state.json":
        (folder / "manifest.json").write_text(json.dumps({**manifest, file: entry_of(folder / file)}))
    said: list[str] = []
    assert snapshots.newest(said.append, at_most=2).step == 1
    assert len(said) == 1
    assert "\n" not in said[0]
    snapshots.create(3, 1, None, lambda folder: [])  # the damaged one is no obstacle
    assert (tmp_path / "step_000003").is_dir()
    snapshots.forget_after(1)
    assert not {"step_000002", "step_000003"} & {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "step_notes.txt").read_text() == "mine"


def test_what_a_run_folder_remembers_of_its_inputs_is_checked(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps(PROMPT) + "\n")
    loaded = config.load("shapes", [f"data.prompts={prompts}"])
    record_inputs(tmp_path, loaded)
    check_unchanged(tmp_path, loaded, loaded)
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / "inputs.json").write_bytes(content)
        refused(lambda: check_unchanged(tmp_path, loaded, loaded), "--resume", "inputs.json")
    prompts.unlink()
    (tmp_path / "inputs.json").write_text("{}")
    refused(lambda: check_unchanged(tmp_path, loaded, loaded), "p.jsonl")
