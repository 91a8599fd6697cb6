"""The configuration of a rehearsal, and what is refused before anything is started."""

from pathlib import Path

import pytest

from t2ir1_ray import config as configuration
from t2ir1_ray import train
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting.limits import check_limits
from t2ir1_ray.fitting.memory import Shapes
from t2ir1_ray.fitting.prompts import training_prompts
from t2ir1_ray.janus.policy import load_config
from t2ir1_ray.rehearsal import prepare


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the cluster is said to have."""
    has = {"CPU": 8.0}
    monkeypatch.setattr(prepare, "connect", lambda _: None)
    monkeypatch.setattr(prepare.ray, "cluster_resources", lambda: has)
    return has


def load(root: Path, *overrides: str, name: str = "janus_pro_7b") -> configuration.Config:
    return configuration.load(name, [f"journal.root={root}", *overrides])


@pytest.mark.parametrize("name", ["janus_pro_1b", "janus_pro_7b"])
def test_a_small_rehearsal_has_every_role_and_needs_no_file(
    name: str, no_cluster: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = load(tmp_path / "runs", name=name)
    with prepare.rehearsal(given, 0.05) as (config, run):
        assert run.parent.parent == tmp_path / "runs"
        assert config.experts.keys() == given.experts.keys()
        assert (config.learner.ranks, config.rollout.actors) == (given.learner.ranks, given.rollout.actors)
        paths = [config.policy.path, *(expert.path for expert in config.experts.values())]
        assert all(Path(path).is_relative_to(run.parent) for path in paths)
        check_limits(config, load_config(config.policy.path))
        assert Shapes.of(load_config(config.policy.path)).language < 20e6
        assert training_prompts(config)[1] == 0
        assert {role.num_gpus for role in (config.learner, config.rollout, *config.experts.values())} == {0}
        assert (config.train.steps, config.journal.save_last) == (3, False)
        assert config.rollout.weight_transfer == "object_store"
        assert config.rollout.kv_cache_gb < 0.1
        assert configuration.load("janus_pro_7b").learner.betas == config.learner.betas
    assert "no GPU" in capsys.readouterr().out
    assert list((tmp_path / "runs").iterdir()) == []
    assert given == load(tmp_path / "runs", name=name)


def test_with_gpus_and_at_full_size_nothing_is_changed_but_paths_and_the_journal(
    no_cluster: dict[str, float], tmp_path: Path
) -> None:
    no_cluster["GPU"] = 8.0
    given = load(tmp_path, "journal.name=kept", "eval.every=5", "eval.prompts=x", "eval.verifier=shapes")
    given.train.on_warning = "stop"
    with prepare.rehearsal(given, 1.0) as (config, run):
        assert config.train.on_warning == "warn"  # random weights show every sign
        assert Shapes.of(load_config(config.policy.path)).language == 6_910_365_696
        assert config.rollout == given.rollout
        assert config.learner == given.learner
        assert config.eval.every == 0
        total = sum(file.stat().st_size for file in run.parent.rglob("*") if file.is_file())
        assert total < 30e6
    assert (tmp_path / "kept" / "models" / "policy" / "config.json").is_file()
    with pytest.raises(UserError, match="journal.name: .*kept is there already"), prepare.rehearsal(given, 1.0):
        pass


def test_an_expert_of_unknown_sizes_is_left_out_unless_it_is_the_last(
    no_cluster: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("experts.mine.kind=my.Judge", "experts.mine.path=x")
    given = load(tmp_path, "experts.grounding_dino.kind=yolo_world", *own)
    with prepare.rehearsal(given, 0.05) as (config, _):
        assert set(config.experts) == {"hps", "git", "orm", "mine"}
        assert config.experts["mine"].path == "x"
    assert "leaves out experts.grounding_dino" in capsys.readouterr().out
    given.experts = {"only": given.experts["grounding_dino"]}
    with pytest.raises(UserError, match="no expert is left"), prepare.rehearsal(given, 0.05):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rehearse-scale", "0"], "--rehearse-scale: 0.0: must be greater than 0"),
        (["--rehearse-scale", "2"], "at most 1"),
        (["--rehearse", "policy.path=my/model"], "policy.path=my/model: is not here, and its name is not Janus-Pro-1B"),
    ],
)
def test_what_cannot_be_rehearsed_gets_one_line(
    arguments: list[str], words: str, no_cluster: dict[str, float], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as error:
        train.main(["--config", "janus_pro_7b", f"journal.root={tmp_path}", *arguments])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
