"""The probe by hand: which two images change places, and whether their scores did."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rewards.base import ExpertScores
from t2ir1_ray.loop.probe import Exchange, exchange, follows, order


def scores(*values: float | None) -> ExpertScores:
    status = ["ok" if value is not None else "failed" for value in values]
    return ExpertScores(
        np.array([np.nan if v is None else v for v in values], np.float32), status, [None] * len(values)
    )


def test_the_group_whose_scores_differ_most_is_asked_again() -> None:
    assert exchange([scores(0.5, 0.5), scores(None, 0.2, 0.9, 0.1), scores(0.3, 0.4)]) == Exchange(1, low=3, high=2)


def test_where_no_scores_differ_there_is_nothing_to_ask() -> None:
    assert exchange([scores(0.5, 0.5), scores(None, 0.9), scores(None, None)]) is None
    assert exchange([scores(0.5, 0.5 + 1e-7)]) is None  # rounding


@given(st.lists(st.floats(0, 1, width=16), min_size=2, max_size=8, unique=True))
def test_scores_that_follow_images_are_told_from_those_of_places(values: list[float]) -> None:
    before = scores(*values)
    places = exchange([before])
    if places is None:
        return
    moved = order(len(values), places)
    assert sorted(moved) == list(range(len(values)))
    assert follows(before, scores(*(values[row] for row in moved)), places) == 1
    assert follows(before, before, places) == -1
    assert follows(before, scores(*[0.3] * len(values)), places) == 0


def test_a_score_that_is_there_no_more_follows_nothing() -> None:
    assert follows(scores(0.0, 1.0), scores(None, 0.0), Exchange(0, 0, 1)) == 0
