"""Whose turn it is to watch: by the step alone."""

from pathlib import Path

import pytest

from t2ir1_ray import config
from t2ir1_ray.errors import UserError
from t2ir1_ray.loop.rotation import reward_weights, watched_in_turn

ALL = {"hps": 1.0, "git": 1.0, "grounding_dino": 1.0, "orm": 1.0}


def test_by_default_every_expert_counts_in_every_step() -> None:
    shipped = config.load("shapes")
    assert {watched_in_turn(shipped, step) for step in range(1, 50)} == {None}
    assert reward_weights(shipped, 7) == ALL


def test_experts_take_turns_in_their_order() -> None:
    rotating = config.load("shapes", ["reward.rotate_monitor=3", "experts.hps.weight=2"])
    turns = [watched_in_turn(rotating, step) for step in range(1, 14)]
    assert turns == [*["hps"] * 3, *["git"] * 3, *["grounding_dino"] * 3, *["orm"] * 3, "hps"]
    assert reward_weights(rotating, 4) == {"hps": 2.0, "grounding_dino": 1.0, "orm": 1.0}


def test_monitors_and_penalties_take_no_turn(tmp_path: Path) -> None:
    overrides = [
        "experts.extra.kind=hps",
        "experts.extra.path=x",
        "experts.extra.weight=-0.5",
        "reward.rotate_monitor=1",
    ]
    rotating = config.load("shapes", [*overrides, "experts.git.role=monitor"])
    assert [watched_in_turn(rotating, step) for step in (1, 2, 3, 4)] == ["hps", "grounding_dino", "orm", "hps"]
    assert reward_weights(rotating, 1) == {"grounding_dino": 1.0, "orm": 1.0, "extra": -0.5}


@pytest.mark.parametrize("two_less", [["experts.git.role=monitor"], ["experts.git.weight=0"]])
def test_two_experts_are_too_few_to_take_turns(two_less: list[str]) -> None:
    overrides = [*two_less, "experts.orm.role=monitor"]
    config.load("shapes", overrides)
    with pytest.raises(UserError, match="reward.rotate_monitor=5: needs 3 experts .* there are 2: ") as error:
        config.load("shapes", [*overrides, "reward.rotate_monitor=5"])
    assert "\n" not in str(error.value)
