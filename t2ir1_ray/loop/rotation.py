"""Which experts a step's reward is made of, and which one it only watches in turn: a canary without another model."""

from t2ir1_ray.config import Config


def watched_in_turn(config: Config, step: int) -> str | None:
    """The expert that `reward.rotate_monitor` holds out of the reward of `step` (from 1); None: it is 0.

    All experts of role reward and positive weight take turns in the order of the configuration. The step alone says
    whose turn it is, so that a run that goes on does so in its place.
    """
    names = [name for name, weight in _rewarded(config).items() if weight > 0]
    return names[(step - 1) // config.reward.rotate_monitor % len(names)] if config.reward.rotate_monitor else None


def reward_weights(config: Config, step: int) -> dict[str, float]:
    """Expert -> its weight in the reward of `step`; who only watches is left out."""
    held_out = watched_in_turn(config, step)
    return {name: weight for name, weight in _rewarded(config).items() if name != held_out}


def _rewarded(config: Config) -> dict[str, float]:
    return {name: expert.weight for name, expert in config.experts.items() if expert.role == "reward"}
