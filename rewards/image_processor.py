"""Opening image processors as their file says.

transformers takes the class from the file and the class's own values for whatever the file leaves out, and it accepts
settings that the class does not use. Here the expert names its class, and what was loaded is held against the file.
The official numbers come from PIL's resampling; the torchvision classes' differ slightly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.image_utils import SizeDict

from rewards.checkpoint import FIELD
from t2ir1_ray.checkpoints.folder import read_json, refuse
from t2ir1_ray.errors import UserError

PIXEL_SETTINGS = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_pad",
    "pad_size",
)
"""What decides the pixels that a model sees."""
REQUIRED = {"size": "do_resize", "image_mean": "do_normalize", "image_std": "do_normalize"}
"""Setting that a file must state -> the step that needs it. A class has values of its own, but of which model?"""


def load_image_processor(processor_class: type, path: str, side: int | None = None) -> Any:
    """An image processor of `processor_class` (of transformers, PIL backend) with the settings of the folder's file.

    side: pixels of the square that the model sees, if it knows only one size.
    Raises UserError if the file is for another class, leaves out what decides the pixels, or says something that the
    class does not do.
    """
    file, stated = _stated(Path(path))
    own = _base_name(processor_class.__name__)
    named = stated.get("image_processor_type") or stated.get("feature_extractor_type") or own
    if _base_name(str(named)) != own:
        raise UserError(f"{FIELD}: {file}: image_processor_type {named!r:.80} is not this expert's {own}: correct it")
    for setting, step in REQUIRED.items():
        if stated.get(step) is not False and stated.get(setting) is None:
            raise UserError(f"{FIELD}: {file} does not say {setting}: add what the model was trained with")
    with refuse(f"{FIELD}: {file}: no image processor can be made of it"):
        processor = processor_class.from_dict(stated)
        shape = processor(images=np.zeros((8, 12, 3), np.uint8), return_tensors="np").pixel_values.shape
    for setting in PIXEL_SETTINGS:
        loaded = getattr(processor, setting, None)
        if setting in stated and not _agree(stated[setting], loaded):
            raise UserError(
                f"{FIELD}: {file}: {setting} is {stated[setting]!r:.80}, but {own} takes {loaded!s:.80}: correct it"
            )
    if side and shape[-2:] != (side, side):
        raise UserError(
            f"{FIELD}: {file} makes images of {shape[-2]} x {shape[-1]} pixels, the model in config.json sees "
            f"{side} x {side}: correct size and crop_size"
        )
    return processor


def check_normalisation(folder: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """For experts with preprocessing of their own: raises UserError if the folder states another mean or deviation."""
    for name in ("preprocessor_config.json", "processor_config.json", "open_clip_config.json"):
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name, FIELD)
        stated = content.get("preprocess_cfg", content.get("image_processor", content))
        for own, settings in ((mean, ("image_mean", "mean")), (std, ("image_std", "std"))):
            for setting in settings:
                if isinstance(stated, dict) and stated.get(setting) not in (None, own, list(own)):
                    raise UserError(
                        f"{FIELD}: {folder / name}: {setting} is {stated[setting]!r:.80}, this expert's model was "
                        f"trained with {list(own)}: correct it, or take the right checkpoint"
                    )


def _stated(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that holds the settings, and these. Raises UserError if two files hold different ones."""
    found = {}
    if (nested := folder / "processor_config.json").is_file():
        content = read_json(nested, FIELD).get("image_processor")
        found |= {nested: content} if isinstance(content, dict) else {}
    if (plain := folder / "preprocessor_config.json").is_file():
        found[plain] = read_json(plain, FIELD)
    if not found:
        raise UserError(f"{FIELD}: {folder} has no preprocessor_config.json: download the checkpoint again")
    (file, stated), *others = found.items()
    for other, settings in others:
        for setting in PIXEL_SETTINGS:
            if settings.get(setting) != stated.get(setting):
                raise UserError(
                    f"{FIELD}: {file} and {other.name} say different things about {setting}: "
                    "remove the one that is out of date"
                )
    return file, stated


def _base_name(class_name: str) -> str:
    """ "CLIPImageProcessorPil", "CLIPImageProcessorFast", "CLIPFeatureExtractor" -> "CLIPImageProcessor"."""
    name = class_name.replace("FeatureExtractor", "ImageProcessor")
    return name.removesuffix("Pil").removesuffix("Fast")


def _agree(stated: Any, loaded: Any) -> bool:
    """Whether a setting is what the file states, where a size may be written as the one number that it has."""
    if isinstance(loaded, SizeDict):
        return stated in dict(loaded).values() if isinstance(stated, int) else SizeDict(**stated) == loaded
    return stated == (list(loaded) if isinstance(loaded, tuple) else loaded)
