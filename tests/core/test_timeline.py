"""What a step took, also one whose samples came with a checkpoint."""

import pytest

from t2ir1_ray.loop.timeline import Timeline, throughput


def test_a_step_that_came_with_a_checkpoint_was_collected_in_no_time_of_this_run() -> None:
    timeline = Timeline()
    with timeline("learn", 7):
        pass
    seconds = timeline.seconds(7)
    assert seconds["time/rollout_s"] is seconds["time/score_s"] is None
    found = throughput(64, 600.0, 1000.0, {**seconds, "time/learn_s": 2.0, "time/step_s": 8.0}, gpus=4.0)
    assert found == {
        "throughput/rollout_image_ms": None,
        "throughput/score_image_ms": None,
        "throughput/learn_image_ms": 31.25,
        "throughput/step_image_ms": 125.0,
        "throughput/rollout_tokens": None,
        "throughput/rollout_images": None,
        "throughput/score_images": None,
        "throughput/learn_images": 32.0,
        "throughput/step_images": 8.0,
        "throughput/gpu_images": 2.0,
        "throughput/learn_tokens": 500.0,
    }


def test_throughput_is_of_each_phase() -> None:
    phases = {"rollout": 4.0, "score": 2.0, "learn": 1.0, "step": 8.0}
    found = throughput(64, 600.0, 1000.0, {f"time/{phase}_s": value for phase, value in phases.items()}, gpus=0.0)
    assert found["throughput/rollout_tokens"] == 150
    for phase, value in phases.items():
        assert found[f"throughput/{phase}_images"] == pytest.approx(64 / value)
