"""The detector's scoring rules against the official numbers, and on odd rows."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.detection import Box, Detection, detection_score, iou, position_score, suppress

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "detection_public.json").read_text())
CASES = [pytest.param(case, id=case["id"]) for case in GOLDEN["cases"]]


@pytest.mark.parametrize("case", CASES)
def test_golden_fixed(case):
    assert detection_score(case["row"], case["detections"]) == pytest.approx(case["fixed"], abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_golden_official(case):
    if case["official_error"]:
        with pytest.raises(TypeError):
            detection_score(case["row"], case["detections"], compat="official")
    else:
        score = detection_score(case["row"], case["detections"], compat="official")
        assert score == pytest.approx(case["official"], abs=1e-5)


def test_objects_and_mappings_score_alike():
    case = next(case for case in GOLDEN["cases"] if len(case["detections"]) > 3)
    as_objects = [SimpleNamespace(**detection) for detection in case["detections"]]
    assert detection_score(case["row"], as_objects) == detection_score(case["row"], case["detections"])


def test_unknown_compat_is_refused():
    with pytest.raises(ValueError, match="compat"):
        detection_score({"task_type": "object", "nouns": []}, [], compat="offical")


def test_own_axis_accepts_a_diagonal_that_the_dominant_axis_refuses():
    upper_left, lower_right = Box(0.2, 0.2, 0.1, 0.1), Box(0.4, 0.7, 0.1, 0.1)
    assert position_score("left of", upper_left, lower_right) == 0.0
    assert position_score("left of", upper_left, lower_right, "own") == 1.0
    assert position_score("right of", upper_left, lower_right, "own") == 0.0


def test_suppression_keeps_the_best_of_overlapping_boxes():
    boxes = [(0, 0, 10, 10), (0, 0, 10, 9), (20, 20, 30, 30)]
    assert suppress(boxes, [0.5, 0.9, 0.4]) == [1, 2]
    assert iou(boxes[0], boxes[1]) == pytest.approx(0.9)
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


nouns = st.text(max_size=12) | st.sampled_from(["cup", "sports ball", "ß ナイフ", "roll of paper towel"])
fraction = st.floats(-0.2, 1.2, allow_nan=False)
boxes = st.builds(Box, fraction, fraction, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
localities = st.sampled_from(["above", "left of", "next to", "on the bottom of", "inside", ""])
rows = st.fixed_dictionaries(
    {
        "task_type": st.sampled_from(["spatial", "numeracy", "object", "color", "complex", "non"]),
        "nouns": st.none() | st.lists(nouns, max_size=6),
        "spatial_info": st.none() | st.fixed_dictionaries({"obj1": nouns, "obj2": nouns, "locality": localities}),
        "numeracy_info": st.none()
        | st.lists(st.fixed_dictionaries({"obj_name": nouns, "num": st.integers(0, 9)}), max_size=4),
    }
)
detections = st.lists(
    st.builds(lambda noun, box, score: Detection(noun, noun, box, score), nouns, boxes, st.floats(0.3, 1)), max_size=12
)


@given(rows, detections)
def test_any_row_scores_between_0_and_1_in_any_order(row, found):
    score = detection_score(row, found)
    assert 0 <= score <= 1 + 1e-9
    if row["nouns"] is not None:
        assert 0 <= detection_score(row, found, compat="official") <= 1 + 1e-9
    if len({item.score for item in found}) == len(found):
        assert detection_score(row, found[::-1]) == pytest.approx(score)


@given(st.lists(nouns, min_size=1, max_size=8), st.data())
def test_object_rows_count_every_entry(names, data):
    seen = data.draw(st.sets(st.sampled_from(names)))
    found = [Detection(noun, noun, Box(0.5, 0.5, 0.2, 0.2), 0.9) for noun in seen]
    expected = sum(name in seen for name in names) / len(names)
    assert detection_score({"task_type": "object", "nouns": names}, found) == pytest.approx(expected)


def test_empty_and_null_nouns_score_1():
    for nouns_field in ([], None):
        assert detection_score({"task_type": "object", "nouns": nouns_field}, []) == 1.0
    assert detection_score({"task_type": "color"}, []) == 1.0


def test_a_thousand_nouns():
    names = [f"thing {i}" for i in range(1000)]
    found = [Detection(name, name, Box(0.5, 0.5, 0.1, 0.1), 0.5) for name in names[::2]]
    assert detection_score({"task_type": "object", "nouns": names}, found) == pytest.approx(0.5)
