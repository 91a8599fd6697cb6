"""The records that cross process borders, and the only place that names Arrow columns.

| record | produced by | consumed by |
| --- | --- | --- |
| prompts (a table, `PROMPT_SCHEMA`) | `prompts.read_prompts` | rollout actors, experts |
| `Rollouts` | rollout actors, one batch per prompt group | experts, reference, journal |
| `Scores` | one expert actor | ensemble |
| `ReferenceLogprobs` | reference actor | learner batch |
| `LearnerBatch` | the driver, whole groups | learner ranks: ids, log-probs and advantages, never pixels |

A record is a frozen dataclass with one row per sample, samples of one prompt consecutive (prompt-major). Its Arrow
column types stand beside its fields; `to_arrow` and `from_arrow` are generic over them. Arrays read back are views of
Arrow memory: zero-copy and read-only.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa

PROMPT_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("task_type", pa.dictionary(pa.int8(), pa.string())),
        ("nouns", pa.list_(pa.string())),
        ("attr_nouns", pa.list_(pa.string())),
        (
            "spatial_info",
            pa.struct([("obj1", pa.string()), ("obj2", pa.string()), ("locality", pa.string())]),
        ),
        ("numeracy_info", pa.list_(pa.struct([("obj_name", pa.string()), ("num", pa.int32())]))),
    ]
)


def _scalars(kind: pa.DataType) -> Any:
    """Column of one value per row: numpy array, or list of str for strings."""
    return field(metadata={"kind": kind, "shape": "scalar"})


def _ragged(kind: pa.DataType) -> Any:
    """Column of one variable-length vector per row: list of 1-d numpy arrays."""
    return field(metadata={"kind": kind, "shape": "ragged"})


def _fixed(kind: pa.DataType) -> Any:
    """Column of equally long vectors (or images): numpy array (rows, ...)."""
    return field(metadata={"kind": kind, "shape": "fixed"})


class Record:
    """Arrow encoding shared by the record dataclasses."""

    def to_arrow(self) -> pa.RecordBatch:
        """One record batch, columns in field order. Raises ValueError if the fields differ in their number of rows."""
        arrays = {
            f.name: _ENCODERS[f.metadata["shape"]](getattr(self, f.name), f.metadata["kind"]) for f in fields(self)
        }
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{type(self).__name__}: rows differ between columns: {lengths}")
        return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))

    @classmethod
    def from_arrow(cls, data: pa.RecordBatch | pa.Table) -> Self:
        if isinstance(data, pa.Table):
            data = data.combine_chunks().to_batches()[0] if data.num_rows else data.schema.empty_table().to_batches()[0]
        return cls(**{f.name: _DECODERS[f.metadata["shape"]](data.column(f.name)) for f in fields(cls)})

    @classmethod
    def concat(cls, records: Sequence[Self]) -> Self:
        """Rows of all records, in order."""
        return cls(
            **{f.name: _JOINERS[f.metadata["shape"]]([getattr(r, f.name) for r in records]) for f in fields(cls)}
        )

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """The given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(
            **{name: v[index] if isinstance(v, np.ndarray) else [v[i] for i in index] for name, v in values.items()}
        )

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))


@dataclass(frozen=True, eq=False)
class Rollouts(Record):
    """Samples of the policy: a plan and an image each. N samples, I image tokens, H x W pixels."""

    prompt_id: list[str] = _scalars(pa.string())
    sample: np.ndarray = _scalars(pa.int32())  # (N,) 0..G-1 inside its prompt
    policy_version: np.ndarray = _scalars(pa.int32())  # (N,)
    seed: np.ndarray = _scalars(pa.int64())  # (N,) of plan and image
    semantic_prompt_ids: list[np.ndarray] = _ragged(pa.int32())  # prompt of the plan
    semantic_ids: list[np.ndarray] = _ragged(pa.int32())  # the plan, up to and including the end token if it came
    semantic_logprobs: list[np.ndarray] = _ragged(pa.float32())  # under the sampling policy
    plan_truncated: np.ndarray = _scalars(pa.bool_())  # (N,) the plan was cut off before its end token
    plan: list[str] = _scalars(pa.string())
    image_prompt_ids: list[np.ndarray] = _ragged(pa.int32())  # ends with <begin_of_image>
    image_ids: np.ndarray = _fixed(pa.int32())  # (N, I)
    image_logprobs: np.ndarray = _fixed(pa.float32())  # (N, I) conditional, or guided, if the learner's are
    pixels: np.ndarray = _fixed(pa.uint8())  # (N, H, W, 3)

    def without_pixels(self) -> Self:
        """The same samples with images of no height (N, 0, W, 3): nothing to copy for who does not look at them."""
        return replace(self, pixels=self.pixels[:, :0])


@dataclass(frozen=True, eq=False)
class Scores(Record):
    """What one expert thinks of N samples."""

    score: np.ndarray = _scalars(pa.float32())  # (N,) NaN here and null in Arrow unless status is ok
    status: list[str] = _scalars(pa.string())  # ok | na (does not apply to this prompt) | failed (drop the sample)
    error: list[str | None] = _scalars(pa.string())  # why it failed


@dataclass(frozen=True, eq=False)
class ReferenceLogprobs(Record):
    """Log-probabilities of N samples under the starting policy."""

    semantic: list[np.ndarray] = _ragged(pa.float32())
    image: np.ndarray = _fixed(pa.float32())  # (N, I)


@dataclass(frozen=True, eq=False)
class LearnerBatch(Record):
    """What a learner rank trains on: N samples of whole groups."""

    prompt_id: list[str] = _scalars(pa.string())
    sample: np.ndarray = _scalars(pa.int32())  # (N,) 0..G-1 inside its prompt
    semantic_prompt_ids: list[np.ndarray] = _ragged(pa.int32())
    semantic_ids: list[np.ndarray] = _ragged(pa.int32())
    semantic_logprobs: list[np.ndarray] = _ragged(pa.float32())  # sampling policy
    semantic_ref_logprobs: list[np.ndarray] = _ragged(pa.float32())
    image_prompt_ids: list[np.ndarray] = _ragged(pa.int32())
    image_ids: np.ndarray = _fixed(pa.int32())  # (N, I)
    image_logprobs: np.ndarray = _fixed(pa.float32())  # (N, I) sampling policy
    image_ref_logprobs: np.ndarray = _fixed(pa.float32())  # (N, I)
    semantic_advantage: np.ndarray = _scalars(pa.float32())  # (N,) of the plan
    image_advantage: np.ndarray = _scalars(pa.float32())  # (N,) of the image
    semantic_token_weight: np.ndarray = _scalars(pa.float32())  # (N,) of each plan token in the batch's loss
    image_token_weight: np.ndarray = _scalars(pa.float32())  # (N,) of each image token in the batch's loss
    image_distance: list[np.ndarray] = _ragged(
        pa.float32()
    )  # (I,) to the group's, or (0,): no token credit asks for it


def dump_table(
    rollouts: Rollouts,
    *,
    prompts: Sequence[str],
    task_types: Sequence[str],
    images: Sequence[bytes],
    scores: Mapping[str, np.ndarray],
    rewards: np.ndarray,
    advantages: np.ndarray,
    semantic_advantages: np.ndarray | None = None,
) -> pa.Table:
    """One step's samples for `rollouts/step_*.parquet`: what a person looks at, images as PNG bytes.

    scores: expert -> (N,) float32, NaN where the expert has none. rewards, advantages: (N,), NaN where dropped.
    semantic_advantages: (N,) of the plans; None: the same as the images'.
    """
    columns = {
        "prompt_id": pa.array(rollouts.prompt_id),
        "sample": pa.array(rollouts.sample),
        "policy_version": pa.array(rollouts.policy_version),
        "seed": pa.array(rollouts.seed),
        "prompt": pa.array(prompts),
        "task_type": pa.array(task_types),
        "plan": pa.array(rollouts.plan),
        "semantic_ids": _encode_ragged(rollouts.semantic_ids, pa.int32()),
        "image_ids": _encode_fixed(rollouts.image_ids, pa.int32()),
        "image": pa.array(images, pa.binary()),
        "reward": _encode_scalars(rewards, pa.float32()),
        "advantage": _encode_scalars(advantages, pa.float32()),
        "semantic_advantage": _encode_scalars(
            advantages if semantic_advantages is None else semantic_advantages, pa.float32()
        ),
        **{f"reward/{name}": _encode_scalars(values, pa.float32()) for name, values in scores.items()},
    }
    return pa.table(columns)


def group_to_arrow(
    prompt: Mapping[str, Any], rollouts: Rollouts, scores: Mapping[str, Scores], reference: ReferenceLogprobs | None
) -> pa.RecordBatch:
    """Everything known about one prompt's samples, one row each: a struct column per record, the prompt as JSON."""
    records: dict[str, Record] = {"rollouts": rollouts} | {f"score/{name}": score for name, score in scores.items()}
    if reference:
        records["reference"] = reference
    columns = {name: record.to_arrow().to_struct_array() for name, record in records.items()}
    columns["prompt"] = pa.array([json.dumps(prompt)] * len(rollouts))
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def group_from_arrow(
    batch: pa.RecordBatch,
) -> tuple[dict[str, Any], Rollouts, dict[str, Scores], ReferenceLogprobs | None]:
    """What `group_to_arrow` was given."""

    def record(kind: type[Record], name: str) -> Any:
        return kind.from_arrow(pa.RecordBatch.from_struct_array(batch[name]))

    names = batch.schema.names
    scores = {name.removeprefix("score/"): record(Scores, name) for name in names if name.startswith("score/")}
    reference = record(ReferenceLogprobs, "reference") if "reference" in names else None
    return json.loads(batch["prompt"][0].as_py()), record(Rollouts, "rollouts"), scores, reference


def _encode_scalars(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind):  # NaN means "no value" and is null on the wire
        return pa.array(np.asarray(values), kind, from_pandas=True)
    return pa.array(values, kind)


def _encode_ragged(values: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    dtype = kind.to_pandas_dtype()
    flat = np.concatenate([np.asarray(v, dtype) for v in values]) if values else np.empty(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind))


def _encode_fixed(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    values = np.ascontiguousarray(values, kind.to_pandas_dtype())
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), values.shape[1])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, values.shape[1:]), storage)


def _decode_scalars(column: pa.Array) -> Any:
    if pa.types.is_string(column.type):
        return column.to_pylist()
    if pa.types.is_boolean(column.type):  # bits in Arrow, bytes in numpy
        return column.to_numpy(zero_copy_only=False)
    if column.null_count:
        return column.to_numpy(zero_copy_only=False).astype(column.type.to_pandas_dtype())
    return column.to_numpy(zero_copy_only=True)


def _decode_ragged(column: pa.ListArray) -> list[np.ndarray]:
    offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
    flat = column.flatten().to_numpy(zero_copy_only=True)
    return [flat[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def _decode_fixed(column: pa.Array) -> np.ndarray:
    if isinstance(column, pa.ExtensionArray):
        flat = column.storage.flatten().to_numpy(zero_copy_only=True)
        return flat.reshape(len(column), *column.type.shape)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)


def _join_lists(parts: list[list[Any]]) -> list[Any]:
    return [value for part in parts for value in part]


def _join_scalars(parts: list[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else _join_lists(parts)


_ENCODERS: dict[str, Callable[[Any, pa.DataType], pa.Array]] = {
    "scalar": _encode_scalars,
    "ragged": _encode_ragged,
    "fixed": _encode_fixed,
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "scalar": _decode_scalars,
    "ragged": _decode_ragged,
    "fixed": _decode_fixed,
}
_JOINERS: dict[str, Callable[[list[Any]], Any]] = {
    "scalar": _join_scalars,
    "ragged": _join_lists,
    "fixed": np.concatenate,
}
