"""Limits between fields and the policy's shape: one line at the door instead of an engine's traceback."""

import pytest

from t2ir1_ray import config
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting.limits import check_limits
from t2ir1_ray.fitting.published import published
from t2ir1_ray.janus.policy import load_config


def check(name: str, *overrides: str) -> None:
    loaded = config.load(name, overrides)
    check_limits(loaded, load_config(loaded.policy.path) if name == "shapes" else published(loaded.policy.path))


@pytest.mark.parametrize("name", ["shapes", "janus_pro_1b", "janus_pro_7b"])
def test_the_shipped_configurations_fit(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("shapes", ["policy.max_plan_tokens=100000"], ["max_plan_tokens=100000", "has 256 positions"]),
        ("shapes", ["policy.max_prompt_tokens=200"], ["max_prompt_tokens=200", "are 276", "36 tokens of an image"]),
        ("janus_pro_1b", ["policy.max_plan_tokens=15600"], ["576 tokens of an image", "16384 positions"]),
        ("janus_pro_7b", ["rollout.kv_cache_gb=0.25"], ["rollout.kv_cache_gb=0.25", "takes 0.366"]),
        ("shapes", ["rollout.kv_cache_gb=0"], ["rollout.kv_cache_gb=0", "raise it"]),
    ],
)
def test_what_does_not_fit_the_policy_is_refused(name: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check(name, *overrides)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_the_last_position_may_be_used() -> None:
    check("shapes", "policy.max_plan_tokens=180")
    with pytest.raises(UserError):
        check("shapes", "policy.max_plan_tokens=181")


def test_a_group_must_be_able_to_be_large_enough() -> None:
    with pytest.raises(UserError, match="reward.min_group_size=9: must be at most rollout.group_size=8"):
        config.load("shapes", ["reward.min_group_size=9"])
