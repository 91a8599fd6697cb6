"""Held-out figures by task type, by hand."""

import numpy as np
import pytest

from t2ir1_ray.loop.heldout import by_task


def test_every_task_type_has_its_own_figures() -> None:
    sampled = {
        "accuracy": np.array([True, False, False, False, True]),
        "plan": np.array([True, True, False, False, True]),
        "follows": np.array([True, False, True, True, True]),
    }
    found = by_task(["count", "count", "count", "count", "a b"], sampled, np.array([True, True, True, False, False]))
    count = {key: value for key, value in found.items() if key.endswith("/count")}
    assert count == {
        "heldout/task/count": 0.25,
        "heldout/task_stderr/count": pytest.approx((0.25 * 0.75 / 4) ** 0.5),
        "heldout/task_greedy/count": 0.75,
        "heldout/task_plan/count": 0.5,
        "heldout/task_follows/count": 0.75,
    }
    others = {key.split("/")[1]: value for key, value in found.items() if key not in count}
    assert others == {"task": 1.0, "task_stderr": 0.0, "task_greedy": 0.0, "task_plan": 1.0, "task_follows": 1.0}
