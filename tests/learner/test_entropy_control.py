"""The controller of the entropy term: its weights by hand, and on a policy whose entropy drifts."""

from pathlib import Path

import pytest

from learner.entropy_control import EntropyControl


def metrics(semantic: float, image: float) -> dict[str, float]:
    return {"entropy/semantic": semantic, "entropy/image": image}


def test_weights_by_hand() -> None:
    control = EntropyControl((0.8, 1.2), 0.5)
    first = control.step(metrics(2.0, 4.0))
    assert first == {
        f"entropy_{what}/{s}": v for what, v in (("weight", 0), ("ratio", 1)) for s in ("semantic", "image")
    }
    control.step(metrics(1.2, 5.6))  # 0.6 and 1.4 of the first: 0.2 below and 0.2 above
    assert control.weights == pytest.approx({"semantic": 0.01, "image": -0.01})  # a tenth of the way to 0.5 * 0.2
    found = control.step(metrics(2.0, 4.0))
    assert found["entropy_weight/semantic"] == pytest.approx(0.01)
    assert control.weights == pytest.approx({"semantic": 0.009, "image": -0.009})  # inside it fades
    for _ in range(200):
        control.step(metrics(0.0, 400.0))
    assert control.weights == pytest.approx({"semantic": 0.5 * 0.8, "image": -0.5})


def test_it_goes_on_exactly_where_it_was_saved(tmp_path: Path) -> None:
    steps = [metrics(2 / (3 + n), 0.1 * (3 + n)) for n in range(6)]
    whole, before, after = (EntropyControl((0.9, 1.1), 0.3) for _ in range(3))
    expected = [whole.step(step) for step in steps]
    assert [before.step(step) for step in steps[:3]] == expected[:3]
    before.save(tmp_path)
    after.restore(tmp_path)
    assert [after.step(step) for step in steps[3:]] == expected[3:]


def test_a_checkpoint_without_a_band_begins_one(tmp_path: Path) -> None:
    control = EntropyControl((0.9, 1.1), 0.3)
    control.restore(tmp_path)
    assert control.step(metrics(2.0, 3.0))["entropy_ratio/image"] == 1.0


def test_a_segment_that_no_batch_had_yet_is_left_alone() -> None:
    control = EntropyControl((0.9, 1.1), 0.3)
    assert control.step(metrics(0.0, 3.0))["entropy_ratio/semantic"] == 1.0
    assert control.step(metrics(2.0, 3.0))["entropy_ratio/semantic"] == 1.0
    assert control.weights == {"semantic": 0.0, "image": 0.0}


@pytest.mark.parametrize("drift", [-0.02, 0.02])
def test_a_steady_drift_is_stopped_without_swinging(drift: float) -> None:
    """The entropy falls or rises by 2 % of the first a step, and by as much as c pulls: it settles near the band."""
    control, entropy, seen = EntropyControl((0.8, 1.2), 0.5), 1.0, []
    for _ in range(300):
        control.step(metrics(entropy, 1.0))
        entropy += drift + control.weights["semantic"]
        seen.append(entropy)
    edge = 1.2 if drift > 0 else 0.8
    assert max(seen[-20:]) - min(seen[-20:]) < 1e-3
    assert seen[-1] == pytest.approx(edge + drift / 0.5, abs=1e-2)
    assert abs(max(seen, key=lambda value: abs(value - 1)) - seen[-1]) < 0.1
