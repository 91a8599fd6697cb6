"""Operations of an update, by hand, and what they are compared with."""

import numpy as np
import pytest
import ray

from t2ir1_ray import config as configuration
from t2ir1_ray.fitting.memory import Shapes
from t2ir1_ray.fitting.utilisation import Utilisation
from t2ir1_ray.records.schema import LearnerBatch

SHAPES = Shapes(
    language=2 * 100 * 8 + 5000,  # embeddings, head and a trunk of 5000 parameters
    generation=0,
    understanding=0,
    vq=0,
    largest=0,
    adapted={},
    layers=3,
    hidden=8,
    intermediate=0,
    keys=8,
    vocabulary=100,
    codes=20,
    image_tokens=6,
    image_side=24,
    vq_channels=1,
)


def ids(*lengths: int) -> list[np.ndarray]:
    return [np.zeros(length, np.int32) for length in lengths]


def batch() -> LearnerBatch:
    """Two samples of one prompt and one of another: prompts of 7 and 5 tokens, plans of 4, 2, 3, images of 9 + 6."""
    values, one = np.zeros((3, 6), np.float32), np.zeros(3, np.float32)
    plans = [plan.astype(np.float32) for plan in ids(4, 2, 3)]
    return LearnerBatch(
        prompt_id=["a", "a", "b"],
        sample=np.array([0, 1, 0], np.int32),
        semantic_prompt_ids=ids(7, 7, 5),
        semantic_ids=ids(4, 2, 3),
        semantic_logprobs=plans,
        semantic_ref_logprobs=plans,
        image_prompt_ids=ids(9, 9, 9),
        image_ids=np.zeros((3, 6), np.int32),
        image_logprobs=values,
        image_ref_logprobs=values,
        semantic_advantage=one,
        image_advantage=one,
        semantic_token_weight=one,
        image_token_weight=one,
        image_distance=[one[:0]] * 3,
    )


@pytest.mark.parametrize(
    ("overrides", "passes", "rows"),
    [([], 3, 3), (["learner.lora_rank=4"], 2, 3), (["learner.image_logprobs=guided", "rollout.guidance=2"], 3, 6)],
)
def test_operations_of_an_update(overrides: list[str], passes: int, rows: int) -> None:
    config = configuration.load("shapes", overrides)
    tokens = (7 + 5) + (4 + 2 + 3) + rows * 15
    trunk = 2 * 5000 * tokens + 2 * 3 * 8 * rows * 15**2
    heads = 2 * ((4 + 2 + 3) * 100 * 8 + rows * 6 * 8 * (8 + 20))
    assert Utilisation(config, SHAPES, None).flop(batch()) == passes * trunk + 3 * heads


def test_the_rate_is_of_one_rank_and_compared_with_a_known_card() -> None:
    config = configuration.load("shapes", ["learner.ranks=2"])
    flop = Utilisation(config, SHAPES, None).flop(batch())
    plain = Utilisation(config, SHAPES, None).metrics(batch(), seconds=0.5)
    assert plain == {"throughput/learn_tflop": pytest.approx(flop / 1e12)}
    compared = Utilisation(config, SHAPES, 1e-3).metrics(batch(), seconds=0.5)
    assert compared["throughput/learn_mfu"] == pytest.approx(flop / 1e9)


def test_the_slowest_known_card_counts_where_the_learner_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": alive, "Resources": {"CPU": 1.0, **card}} for alive, card in (
        (True, {"accelerator_type:H100": 1.0}), (True, {"accelerator_type:A100": 1.0}),
        (False, {"accelerator_type:L40S": 1.0}), (True, {"accelerator_type:OWN": 1.0}), (True, {}),
    )]  # fmt: skip
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    config = configuration.load("shapes")
    assert Utilisation.of(config).tflop_per_s is None
    config.learner.num_gpus = 1
    assert Utilisation.of(config).tflop_per_s == 312
    nodes[:] = nodes[3:]
    assert Utilisation.of(config).tflop_per_s is None
