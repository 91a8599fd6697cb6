"""Round trips of every record through Arrow, in memory and through the IPC format that crosses process borders."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from t2ir1_ray.records.schema import LearnerBatch, Record, ReferenceLogprobs, Rollouts, Scores

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def vectors(rows: int, dtype: type, elements: st.SearchStrategy) -> st.SearchStrategy:
    one = hnp.arrays(dtype, st.integers(0, 5), elements=elements)
    return st.lists(one, min_size=rows, max_size=rows)


def matrix(rows: int, width: int, dtype: type, elements: st.SearchStrategy) -> st.SearchStrategy:
    return hnp.arrays(dtype, (rows, width), elements=elements)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
IDS = st.integers(0, 2**31 - 1)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollouts:
    n, tokens, side = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return Rollouts(
        prompt_id=draw(st.lists(TEXT, min_size=n, max_size=n)),
        sample=np.arange(n, dtype=np.int32),
        policy_version=draw(hnp.arrays(np.int32, n, elements=IDS)),
        seed=draw(hnp.arrays(np.int64, n)),
        semantic_prompt_ids=draw(vectors(n, np.int32, IDS)),
        semantic_ids=draw(vectors(n, np.int32, IDS)),
        semantic_logprobs=draw(vectors(n, np.float32, FLOATS)),
        plan_truncated=draw(hnp.arrays(bool, n)),
        plan=draw(st.lists(TEXT, min_size=n, max_size=n)),
        image_prompt_ids=draw(vectors(n, np.int32, IDS)),
        image_ids=draw(matrix(n, tokens, np.int32, IDS)),
        image_logprobs=draw(matrix(n, tokens, np.float32, FLOATS)),
        pixels=draw(hnp.arrays(np.uint8, (n, side, side, 3))),
    )


def assert_equal(a: Record, b: Record) -> None:
    assert type(a) is type(b)
    for name, left in vars(a).items():
        right = getattr(b, name)
        assert len(left) == len(right), name
        for x, y in zip(left, right, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
        if isinstance(left, np.ndarray):
            assert (left.dtype, left.shape) == (right.dtype, right.shape), name


def through_ipc(batch: pa.RecordBatch) -> pa.RecordBatch:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()


@settings(max_examples=60)
@given(rollouts())
def test_rollouts_survive_arrow(record: Rollouts) -> None:
    assert_equal(Rollouts.from_arrow(through_ipc(record.to_arrow())), record)


@settings(max_examples=60)
@given(rollouts(), st.data())
def test_slices_concat_and_take_keep_rows(record: Rollouts, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(record)))
    batch = record.to_arrow()
    parts = [Rollouts.from_arrow(batch.slice(0, cut)), Rollouts.from_arrow(batch.slice(cut))]
    assert_equal(Rollouts.concat(parts), record)
    order = data.draw(st.permutations(range(len(record))))
    assert_equal(record.take(order).take(np.argsort(order)), record)


@settings(max_examples=60)
@given(st.lists(st.tuples(FLOATS, st.sampled_from(["ok", "na", "failed"]), st.none() | TEXT), min_size=1, max_size=6))
def test_scores_are_null_unless_ok(rows: list[tuple[float, str, str | None]]) -> None:
    score = np.array([value if status == "ok" else np.nan for value, status, _ in rows], np.float32)
    record = Scores(score, [status for _, status, _ in rows], [error for *_, error in rows])
    batch = record.to_arrow()
    assert batch.column("score").null_count == sum(status != "ok" for _, status, _ in rows)
    assert_equal(Scores.from_arrow(through_ipc(batch)), record)


@settings(max_examples=30)
@given(st.data(), st.integers(1, 4))
def test_learner_records_survive_arrow(data: st.DataObject, n: int) -> None:
    floats = vectors(n, np.float32, FLOATS)
    ids = vectors(n, np.int32, IDS)
    image = matrix(n, 3, np.float32, FLOATS)
    weight = hnp.arrays(np.float32, n, elements=FLOATS)
    batch = LearnerBatch(
        prompt_id=data.draw(st.lists(TEXT, min_size=n, max_size=n)),
        sample=np.arange(n, dtype=np.int32),
        semantic_prompt_ids=data.draw(ids),
        semantic_ids=data.draw(ids),
        semantic_logprobs=data.draw(floats),
        semantic_ref_logprobs=data.draw(floats),
        image_prompt_ids=data.draw(ids),
        image_ids=data.draw(matrix(n, 3, np.int32, IDS)),
        image_logprobs=data.draw(image),
        image_ref_logprobs=data.draw(image),
        semantic_advantage=data.draw(weight),
        image_advantage=data.draw(weight),
        semantic_token_weight=data.draw(weight),
        image_token_weight=data.draw(weight),
        image_distance=data.draw(floats),
    )
    assert_equal(LearnerBatch.from_arrow(through_ipc(batch.to_arrow())), batch)
    reference = ReferenceLogprobs(batch.semantic_ref_logprobs, batch.image_ref_logprobs)
    assert_equal(ReferenceLogprobs.from_arrow(through_ipc(reference.to_arrow())), reference)


def test_pixels_are_read_without_a_copy() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    column = Scores(np.zeros(2, np.float32), ["ok"] * 2, [None] * 2)
    record = Rollouts(
        ["a", "b"], np.zeros(2, np.int32), np.zeros(2, np.int32), np.zeros(2, np.int64),
        *[[np.zeros(1, np.int32)] * 2] * 2, [np.zeros(1, np.float32)] * 2, np.zeros(2, bool), ["", ""],
        [np.zeros(1, np.int32)] * 2,
        np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32), pixels,
    )  # fmt: skip
    batch = record.to_arrow()
    storage = batch.column("pixels").storage.flatten().to_numpy()
    found = Rollouts.from_arrow(batch)
    assert np.shares_memory(found.pixels, storage)
    bare = Rollouts.concat([found.without_pixels(), found.without_pixels()])
    assert (len(bare), bare.pixels.nbytes) == (4, 0)
    assert bare.prompt_id == 2 * found.prompt_id
    assert len(column) == 2


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="rows differ"):
        Scores(np.zeros(2, np.float32), ["ok"], [None]).to_arrow()
