"""Which experts exist, and how one is opened. Importing this module loads no model library."""

from __future__ import annotations

import pickle
from importlib import import_module
from typing import Any

from safetensors import SafetensorError

from rewards.base import Expert
from t2ir1_ray.errors import RunError, UserError

EXPERTS = {
    "hps": "rewards.hps.HpsExpert",
    "git": "rewards.git.GitExpert",
    "blip": "rewards.blip.BlipExpert",
    "grounding_dino": "rewards.grounding_dino.GroundingDinoExpert",
    "yolo_world": "rewards.yolo_world.YoloWorldExpert",
    "orm": "rewards.orm.OrmExpert",
}
"""Kind of expert -> class. A class takes (path, device, dtype, **options) and documents its options."""

BAD_CHECKPOINT = (
    OSError,
    AttributeError,
    ImportError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""What the model libraries raise on a bad checkpoint or option, mostly."""

PROTOCOL = ("applies_to", "score")
"""Methods that a class of your own has, see `rewards.base.Expert`."""

DTYPES = ("float32", "bfloat16", "float16")


def load_expert(kind: str, path: str, device: str = "cpu", dtype: str = "float32", **options: Any) -> Expert:
    """Open one expert from a checkpoint folder or file (or a model hub id, fetched only because it was named).

    kind: a key of EXPERTS, or "package.module.Class" for an expert of your own. dtype: "float32", "bfloat16" or
    "float16". options: keyword arguments of the expert's class.
    Raises UserError with one line if the kind, the options or the checkpoint are wrong.
    """
    module, _, class_name = EXPERTS.get(kind, kind).rpartition(".")
    if not module:
        raise UserError(f"expert kind: {kind!r} is unknown: choose one of {', '.join(EXPERTS)}, or name a class")
    if dtype not in DTYPES:
        raise UserError(f"expert dtype: {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    try:
        expert_class = getattr(import_module(module), class_name)
        if not isinstance(expert_class, type) or not all(hasattr(expert_class, name) for name in PROTOCOL):
            raise UserError(f"expert kind: {kind} is no expert: a class with {', '.join(PROTOCOL)}")
        return expert_class(path, device=device, dtype=dtype, **options)
    except (UserError, RunError):
        raise
    except Exception as error:  # one line that names the expert, whatever the model libraries raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"expert {kind}: {path}: {reason}") from error
