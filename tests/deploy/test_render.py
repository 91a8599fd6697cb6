"""`python -m deploy.render`: what it writes, what it says, what it refuses."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy import render, write_examples
from deploy.targets import REPLACE, TARGETS
from t2ir1_ray.errors import UserError
from tests.deploy import checks


def test_examples_are_what_render_gives() -> None:
    made = write_examples.examples()
    there = {str(p.relative_to(write_examples.FOLDER)): p for p in write_examples.FOLDER.rglob("*") if p.is_file()}
    stale = sorted(n for n in made.keys() | there.keys() if n not in there or there[n].read_text() != made.get(n))
    assert not stale, "run `python -m deploy.write_examples` (make examples)"


@pytest.mark.parametrize("target", TARGETS)
def test_files_come_into_a_folder_or_to_stdout(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    render.main(["--target", target, "--out", str(tmp_path / "new")])
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(TARGETS[target].files)
    capsys.readouterr()
    render.main(["--target", target])
    for path in (tmp_path / "new").iterdir():
        assert path.read_text() in capsys.readouterr().out or len(TARGETS[target].files) > 1


MINE = "policy: {path: deepseek-community/Janus-Pro-7B}\ndata: {prompts: /shared/models/mine.jsonl} # one\n"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "my_7b.yaml"
    path.write_text(MINE + "experts:\n  hps: {kind: hps, path: /shared/models/HPS_v2.1_compressed.pt}\n")
    return path


def written(arguments: Sequence[str], out: Path) -> dict[str, str]:
    render.main([*arguments, "--out", str(out)])
    return {path.name: path.read_text() for path in out.iterdir()}


def test_a_file_of_ones_own_comes_with_the_cluster(mine: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(mine), "learner.ranks=4", "rollout.num_gpus=1", "train.steps=7"]
    files = written([*arguments, "--target", "aws"], tmp_path / "aws")
    assert files["config.yaml"] == mine.read_text()
    [config] = checks.load(files["cluster.yaml"])
    assert config["file_mounts"]["/etc/t2ir1/config.yaml"] == "config.yaml"
    words = "/shared/runs/my_7b --config /etc/t2ir1/config.yaml learner.ranks=4 rollout.num_gpus=1 train.steps=7"
    assert f"t2ir1-run {words} cluster.place_timeout_s=1800 cluster.folder=/shared/models" in files["cluster.yaml"]

    files = written([*arguments, "--target", "kuberay"], tmp_path / "kuberay")
    config_map = checks.load(files["storage.yaml"])[-1]
    assert not checks.kubernetes(config_map)
    assert config_map["data"]["config.yaml"].strip() == mine.read_text().strip()
    [job] = checks.load(files["rayjob.yaml"])
    assert not checks.kubernetes(job)
    assert not list(checks.operator_rules(job))
    assert job["spec"]["entrypoint"].startswith(f"t2ir1-run {words}")
    for pod in [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]:
        assert {"name": "config", "configMap": {"name": "t2ir1-my-7b"}} in pod["template"]["spec"]["volumes"]


def test_spot_workers_go_on_by_themselves(tmp_path: Path) -> None:
    arguments = ["--config", "janus_pro_7b", "--spot"]
    aws = written([*arguments, "--target", "aws"], tmp_path / "aws")["cluster.yaml"]
    gcp = written([*arguments, "--target", "gcp"], tmp_path / "gcp")["cluster.yaml"]
    for text, check in ((aws, checks.ec2_shapes), (gcp, checks.gcp_shapes)):
        [config] = checks.load(text)
        assert not check(config)
        assert not list(checks.launcher_rules(config))
        assert '"T2IR1_RETRIES": "20"' in text
    assert "MarketType: spot" in aws
    assert "provisioningModel: SPOT" in gcp
    task = checks.load(written([*arguments, "--target", "skypilot"], tmp_path / "sky")["task.yaml"])[0]
    assert task["resources"]["use_spot"] is True
    assert not checks.skypilot(task)


def test_what_only_the_user_knows_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(["--target", "aws"], tmp_path / "a")
    said = capsys.readouterr().err
    assert "still to be replaced" in said
    assert f"sg-{REPLACE}" in said
    given = ["image=1.dkr.ecr.eu-west-1.amazonaws.com/t2ir1:2", "filesystem=fs-1.efs:/", "security_group=sg-1"]
    profile = "instance_profile=arn:aws:iam::1:instance-profile/ray"
    settings = [argument for value in (*given, profile, "subnet=subnet-1") for argument in ("--set", value)]
    text = written(["--target", "aws", *settings], tmp_path / "b")["cluster.yaml"]
    assert "still to be replaced" not in capsys.readouterr().err
    [config] = checks.load(text)
    assert not checks.ec2_shapes(config)
    assert "docker login --username AWS --password-stdin 1.dkr.ecr.eu-west-1.amazonaws.com" in text


def test_notes_name_paths_and_experts_that_the_nodes_may_lack(mine: Path, tmp_path: Path) -> None:
    config = render.configuration.load(str(mine), ["data.prompts=/home/me/mine.jsonl", "experts.hps.path=hps.pt"])
    files, notes = render.render(render.Request(config, str(mine), mine), "slurm")
    assert any(note.startswith("data.prompts=/home/me/mine.jsonl:") for note in notes)
    assert any("expert-hps: not here to be measured" in note for note in notes)
    assert files["config.yaml"] == mine.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "azure"], "invalid choice"),
        (["--target", "aws", "--set", "regin=x"], "aws knows image=..., region=..."),
        (["--target", "aws", "--set", "region"], "aws knows"),
        (["--target", "aws", "--set", "image=x\n- -v /:/host"], "letters, digits"),
        (["--target", "aws", "--set", 'zone=a"; rm -rf /'], "letters, digits"),
        (["--target", "aws", "--run", "../x"], "--run '../x': at most 63"),
        (["--target", "aws", "--gpu", "L4", "--config", "janus_pro_7b"], "aws offers L40S, H100"),
        (["--target", "aws", "--gpu", "L40S", "--config", "janus_pro_7b"], "of aws's GPUs L40S has 48"),
        (["--target", "gcp", "--config", "janus_pro_7b", "learner.ranks=1"], "memory: a GPU with learner needs"),
        (["--target", "aws", "--config", "janus_pro_7b", "rollout.num_gpus=16"], "placement: rollout take 16 GPUs"),
        (["--target", "gcp", "rollout.num_cpus=300"], "no machine of gcp has them"),
        (["--target", "gcp", "policy.path=nobody/nothing"], "policy.path=nobody/nothing: not here to be measured"),
        (["--target", "gcp", "train.step=3"], "did you mean train.steps"),
        (["--target", "gcp", "policy.plan_system='a\n b'"], "holds line breaks"),
        (
            ["--target", "compose", "--config", "janus_pro_7b", "learner.ranks=8"],
            "takes 2 machines, compose is for one",
        ),
        (["--target", "kuberay", "--set", "pods=one"], "role (one pod per role's size) or node"),
        (["--target", "kuberay", "--set", "selector=any"], "memory (NVIDIA's node labels), gke or eks"),
        (
            ["--target", "kuberay", "--set", "selector=gke", "--gpu", "L40S", "--config", "janus_pro_1b"],
            "offers no L40S",
        ),
        (
            ["--target", "local", "--set", "worker_ips=10.0.0.2", "--config", "janus_pro_7b", "learner.ranks=8"],
            "2 workers",
        ),
    ],
)
def test_refusals_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        render.main(arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_words_with_blanks_stay_words(tmp_path: Path) -> None:
    arguments = ['policy.plan_system=it\'s "mine" {{ 1 }} $HOME', "--target"]
    [job] = checks.load(written([*arguments, "kuberay"], tmp_path / "k")["rayjob.yaml"])
    assert 'policy.plan_system=it\'s "mine" {{ 1 }} $HOME' in shlex.split(job["spec"]["entrypoint"])


def test_tokens_and_dashboards_of_every_target(rendered: dict[tuple[str, str], dict[str, str]]) -> None:
    """A token wherever Ray starts; a dashboard on all interfaces in Kubernetes only, behind a service and the token."""
    for (_, target), files in rendered.items():
        for name, text in files.items():
            if "ray start" in text or "symmetric-run" in text or "rayClusterSpec" in text:
                assert "RAY_AUTH_MODE" in text, (target, name)
            assert ("0.0.0.0" in text) == (target == "kuberay" and name != "storage.yaml"), (target, name)
