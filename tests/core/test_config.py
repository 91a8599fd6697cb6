"""Configuration: merging, types, and one helpful line for every mistake."""

from pathlib import Path

import pytest

from t2ir1_ray import config
from t2ir1_ray.errors import UserError

MISTAKES = {
    "trian.steps=3": "did you mean train",
    "train.step=3": "did you mean train.steps",
    "steps=3": "did you mean train.steps",
    "experts.hps.kid=x": "did you mean experts.hps.kind",
    "train.steps=many": "could not be converted to Integer",
    "train=3": "train",
    "train.steps=[1": "not a YAML value",
    "train.steps": "section.key=value",
    "experts.extra.kind=hps": "experts.extra.path: not set",
    "rollout.group_size=1": "at least 2",
    "learner.ranks=3": "divisible by learner.ranks=3",
    "learner.zero_stage=4": "must be one of 1, 2, 3",
    "learner.num_gpus=1.5": "a rank has one GPU, or 0",
    "train.steps=0": "greater than 0",
    "rollout.guidance=0.5": "at least 1",
    "policy.plan_template=draw": "lacks {prompt}",
    "experts.hps.role=judge": "reward, monitor",
    "learner.token_credit=guidance": "set learner.image_logprobs=guided",
    "learner.entropy_band=[0.5,0.9]": "must lie around 1",
    "learner.entropy_band=[0.5]": "learner.entropy_band",
    "cluster.folder=shared": "cluster.folder=shared: must be absolute",
}


@pytest.mark.parametrize(("override", "message"), MISTAKES.items())
def test_a_mistake_gets_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        config.load("shapes", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_win_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "policy: {path: p}\ndata: {prompts: d}\nexperts: {a: {kind: hps, path: e}}\ntrain: {steps: 5, seed: 7}\n"
    )
    loaded = config.load(str(file), ["train.steps=9", "learner.betas=[0.5,0.6]"])
    assert (loaded.train.steps, loaded.train.seed, loaded.learner.betas) == (9, 7, (0.5, 0.6))
    assert loaded.learner.learning_rate == config.LearnerConfig().learning_rate
    config.save(loaded, tmp_path / "saved.yaml")
    assert config.load(str(tmp_path / "saved.yaml")) == loaded


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "\x00", "train: {stepz: 1}\n"])
def test_a_bad_file_gets_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        config.load(str(file))
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="shapes"):
        config.load("shape")


@pytest.mark.parametrize("name", [p.stem for p in Path(config.__file__).parent.glob("*.yaml")])
def test_every_shipped_configuration_is_valid(name: str) -> None:
    assert config.load(name).train.steps > 0


def test_one_folder_says_where_everything_is(tmp_path: Path) -> None:
    """What `cluster.folder` holds is found there; a hub id that it does not hold stays one."""
    (tmp_path / "microsoft" / "git-large-vqav2").mkdir(parents=True)
    loaded = config.load("janus_pro_7b", [f"cluster.folder={tmp_path}", "eval.prompts=e.jsonl"])
    assert loaded.experts["git"].path == f"{tmp_path}/microsoft/git-large-vqav2"
    assert loaded.experts["hps"].path == f"{tmp_path}/HPS_v2.1_compressed.pt"
    assert loaded.experts["orm"].path == "CaraJ/ORM-T2I-R1"
    assert loaded.policy.path == "deepseek-community/Janus-Pro-7B"
    assert loaded.data.prompts == f"{tmp_path}/T2I-R1/data/geneval_and_t2i_data_final.json"
    assert (loaded.eval.prompts, loaded.journal.root) == (f"{tmp_path}/e.jsonl", f"{tmp_path}/runs")
    config.save(loaded, tmp_path / "saved.yaml")
    assert config.load(str(tmp_path / "saved.yaml")) == loaded
    absolute = config.load("shapes", [f"cluster.folder={tmp_path}", "journal.root=/elsewhere"])
    assert absolute.journal.root == "/elsewhere"
    assert absolute.policy.path == config.load("shapes").policy.path


def test_a_path_of_an_expert_of_ones_own_may_be_anything(tmp_path: Path) -> None:
    own = ["experts.mine.kind=package.module.Class", "experts.mine.path=whatever", f"cluster.folder={tmp_path}"]
    assert config.load("shapes", own).experts["mine"].path == "whatever"
