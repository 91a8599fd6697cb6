"""Combining experts: weights, applicability, failures, ragged groups, and what is reported."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import ExpertScores
from rewards.ensemble import combine, insight, normalise_in_groups


def scores_of(*values):
    """Floats are ok, None is not applicable, "x" has failed."""
    status = ["na" if v is None else "failed" if v == "x" else "ok" for v in values]
    numbers = [v if s == "ok" else np.nan for v, s in zip(values, status, strict=True)]
    return ExpertScores(np.array(numbers, np.float32), status, ["broken" if s == "failed" else None for s in status])


def test_sum_is_the_weighted_sum():
    rewards, keep = combine({"a": scores_of(1.0, 2.0), "b": scores_of(0.5, 0.25)}, {"a": 1.0, "b": 2.0})
    assert rewards.tolist() == [2.0, 2.5]
    assert rewards.dtype == np.float32
    assert keep.tolist() == [True, True]


def test_not_applicable_adds_nothing_and_keeps_the_sample():
    rewards, keep = combine({"a": scores_of(1.0, 2.0), "b": scores_of(None, None)}, {"a": 1.0, "b": 1.0})
    assert rewards.tolist() == [1.0, 2.0]
    assert keep.all()


def test_a_failed_sample_is_dropped_only_by_an_expert_that_counts():
    scores = {"a": scores_of(1.0, 2.0), "b": scores_of("x", 3.0)}
    rewards, keep = combine(scores, {"a": 1.0, "b": 1.0})
    assert rewards.tolist() == [0.0, 5.0]
    assert keep.tolist() == [False, True]
    rewards, keep = combine(scores, {"a": 1.0, "b": 0.0})
    assert rewards.tolist() == [1.0, 2.0]
    assert keep.all()


def test_gdpo_normalises_each_expert_inside_its_group():
    group = [0, 0, 0, 1, 1, 1]
    fine = scores_of(0.30, 0.31, 0.32, 0.20, 0.21, 0.22)
    coarse = scores_of(0.9, 0.0, 0.0, 0.5, 0.5, 0.5)
    rewards, _ = combine({"fine": fine, "coarse": coarse}, {"fine": 1.0, "coarse": 1.0}, "gdpo", group)
    step = 0.01 / (0.01 + 1e-4)
    assert rewards[3:] == pytest.approx([-step, 0, step], abs=1e-5)  # coarse says nothing about the second group
    spread = np.std([0.9, 0, 0], ddof=1) + 1e-4
    assert rewards[0] == pytest.approx(-step + 0.6 / spread, abs=1e-5)


def test_gdpo_leaves_dropped_samples_out_of_the_statistics():
    group = [0, 0, 0, 0]
    with_failure, keep = combine({"a": scores_of(0.0, 1.0, 0.5, "x")}, {"a": 1.0}, "gdpo", group)
    without, _ = combine({"a": scores_of(0.0, 1.0, 0.5)}, {"a": 1.0}, "gdpo", group[:3])
    assert with_failure[:3].tolist() == without.tolist()
    assert keep.tolist() == [True, True, True, False]
    assert with_failure[3] == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-10, 10, width=32)), min_size=1, max_size=30), st.data())
def test_normalised_groups_have_mean_zero(samples, data):
    group, values = (np.array(column) for column in zip(*samples, strict=True))
    counted = np.array(data.draw(st.lists(st.booleans(), min_size=len(group), max_size=len(group))))
    out = normalise_in_groups(values.astype(float), group, counted)
    assert (out[~counted] == 0).all()
    assert np.isfinite(out).all()
    for index in np.unique(group):
        assert out[(group == index) & counted].sum() == pytest.approx(0, abs=1e-6)


def test_wrong_arguments_are_refused():
    a = {"a": scores_of(1.0)}
    with pytest.raises(ValueError, match="no scores from b"):
        combine(a, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="mode"):
        combine(a, {"a": 1.0}, "mean")
    with pytest.raises(ValueError, match="group"):
        combine(a, {"a": 1.0}, "gdpo")


def test_insight_reports_what_the_advantage_can_see():
    group = [0, 0, 1, 1]
    tasks = ["color", "color", "spatial", "spatial"]
    scores = {
        "a": scores_of(0.0, 1.0, 0.5, 0.5),
        "b": scores_of(0.2, 0.4, 0.3, 0.3),
        "c": scores_of(None, None, "x", 1.0),
    }
    metrics = insight(scores, group, tasks)
    assert metrics["a/mean"] == pytest.approx(0.5)
    assert metrics["a/zero_spread"] == pytest.approx(0.5)
    assert metrics["a/group_std"] == pytest.approx(np.sqrt(0.5) / 2)
    assert metrics["a/task/color"] == pytest.approx(0.5)
    assert metrics["b/task/spatial"] == pytest.approx(0.3)
    assert metrics["correlation/a~b"] == pytest.approx(1.0)
    assert metrics["c/applies"] == 0.5
    assert metrics["c/failed"] == 0.25
    assert "c/zero_spread" not in metrics
    assert "correlation/a~c" not in metrics
