"""YOLO-World as the object-detector expert, through the optional package ultralytics (AGPL-3.0; extra `yolo`).

Paper: arXiv 2401.17270. Weights: `yolov8x-worldv2.pt`, with text features of CLIP `ViT-B-32-quickgelu` (OpenAI). The
package's own `set_classes` is never called, as it installs software and downloads weights: text features are computed
here with open_clip and handed to the network.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewards.base import NonFiniteScore, index_of_each
from rewards.checkpoint import FIELD, checkpoint_path
from rewards.clip import load_clip
from rewards.detection import NMS_IOU, Box, Compat, Detection, Directions
from rewards.detector import DetectorExpert, official_phrase
from t2ir1_ray.checkpoints.weights import read_tensors
from t2ir1_ray.errors import UserError

PADDING_GREY = 114


class YoloWorldExpert(DetectorExpert):
    """An open-vocabulary detector that is some times faster than GroundingDINO.

    A noun's score depends on the other nouns of its prompt, so every image is asked for its own prompt's nouns only.
    """

    name = "yolo_world"

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        text_path: str | None = None,
        text_arch: str = "ViT-B-32-quickgelu",
        image_size: int = 640,
        compat: Compat = "fixed",
        directions: Directions = "dominant",
        box_threshold: float = 0.3,
        batch_size: int = 16,
    ) -> None:
        """path: an ultralytics `.pt` file, `text_path` being the weights of its CLIP; or a folder with config.json (the
        network's `model` and its `image_size`), model.safetensors, and the CLIP in open_clip's layout in `text`."""
        super().__init__(compat, directions, box_threshold, batch_size)
        file = Path(checkpoint_path(path))
        if file.is_dir():
            self.net, self.image_size = load_network_folder(file)
            text_path = text_path or str(file / "text")
        else:
            self.net, self.image_size = load_network_file(file), image_size
        if text_path is None:
            raise UserError("expert text_path: missing: give the weights of CLIP ViT-B-32 (OpenAI) for YOLO-World")
        self.net = self.net.requires_grad_(False).eval().to(device, getattr(torch, dtype))
        self.text_model, self.tokenizer = load_clip(text_path, text_arch, device, dtype)
        self.device, self.dtype = device, getattr(torch, dtype)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """See `letterbox`."""
        return letterbox(image, self.image_size)

    @torch.inference_mode()
    def find(self, prepared: Sequence[tuple[Tensor, Frame]], nouns: Sequence[Sequence[str]]) -> list[list[Detection]]:
        # A shorter class list is filled by repeating a real class, which leaves the other scores exactly as they were.
        classes = max(map(len, nouns))
        filled = [[*names, *[names[0]] * (classes - len(names))] for names in nouns]
        pixels = torch.stack([pixels for pixels, _ in prepared]).to(self.device, self.dtype)
        self.net.model[-1].nc = classes
        output = self.net.predict(pixels, txt_feats=self._text_features(filled))[0].float().cpu()
        return [
            self._above_threshold(output[index], names, frame)
            for index, (names, (_, frame)) in enumerate(zip(nouns, prepared, strict=True))
        ]

    def _text_features(self, nouns: list[list[str]]) -> Tensor:
        """(N, classes, D), normalised; each distinct noun is encoded once."""
        distinct, position = index_of_each([noun for names in nouns for noun in names])
        features = self.text_model.encode_text(self.tokenizer(distinct).to(self.device), normalize=True)
        return features[position].view(len(nouns), len(nouns[0]), -1)

    def _above_threshold(self, output: Tensor, nouns: Sequence[str], frame: Frame) -> list[Detection]:
        """output: (4 + classes, anchors), boxes as cx, cy, w, h in pixels of the letterboxed image, then scores."""
        from ultralytics.utils.nms import TorchNMS

        if not torch.isfinite(output).all():
            raise NonFiniteScore(f"{self.name}: the detector's output is not finite (nouns {list(nouns)})")
        found = []
        for noun, scores in zip(nouns, output[4 : 4 + len(nouns)], strict=True):
            above = scores > self.box_threshold
            boxes, kept = output[:4, above].T, scores[above]
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
            for index in TorchNMS.nms(corners, kept, NMS_IOU).tolist():
                box = frame.fractions(boxes[index].tolist())
                found.append(Detection(noun, official_phrase(noun), box, kept[index].item()))
        return found


class Frame:
    """Where an image of (height, width) lies in its letterboxed square."""

    def __init__(self, height: int, width: int, size: int) -> None:
        scale = size / max(height, width)
        self.width, self.height = max(1, round(width * scale)), max(1, round(height * scale))
        self.left, self.top = (size - self.width) // 2, (size - self.height) // 2

    def fractions(self, box: Sequence[float]) -> Box:
        """cx, cy, w, h in pixels of the square -> fractions of the image's own sides."""
        cx, cy, w, h = box
        return Box((cx - self.left) / self.width, (cy - self.top) / self.height, w / self.width, h / self.height)


def letterbox(image: np.ndarray, size: int) -> tuple[Tensor, Frame]:
    """(H, W, 3) uint8 -> (3, size, size) float32 in 0..1, bilinear, on grey, and where the image lies in it."""
    frame = Frame(*image.shape[:2], size)
    square = np.full((size, size, 3), PADDING_GREY, np.uint8)
    resized = Image.fromarray(image).resize((frame.width, frame.height), Image.Resampling.BILINEAR)
    square[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = resized
    return torch.from_numpy(square).permute(2, 0, 1).float() / 255, frame


def prepare_ultralytics() -> None:
    """Keep ultralytics from installing, downloading, or writing into the home folder; call this before it is imported.

    Raises UserError if the package is not there.
    """
    if find_spec("ultralytics") is None:
        raise UserError("expert yolo_world: ultralytics is not installed: pip install 't2ir1_ray[yolo]' (AGPL-3.0)")
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_OFFLINE"] = "true"
    if "YOLO_CONFIG_DIR" not in os.environ:
        os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultralytics-")
        atexit.register(shutil.rmtree, os.environ["YOLO_CONFIG_DIR"], ignore_errors=True)


def load_network_file(file: Path) -> torch.nn.Module:
    """An ultralytics `.pt` file; only the package's own model classes are unpickled."""
    prepare_ultralytics()
    from ultralytics.nn.tasks import WorldModel, torch_safe_load

    checkpoint, _ = torch_safe_load(str(file), safe_only=True)
    net = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(net, WorldModel):
        raise UserError(f"expert path: {file} holds no YOLO-World network: give a file like yolov8x-worldv2.pt")
    return net.float()


def load_network_folder(folder: Path) -> tuple[torch.nn.Module, int]:
    """(network, image size) from config.json and model.safetensors."""
    prepare_ultralytics()
    from ultralytics.nn.tasks import WorldModel

    if not (folder / "config.json").is_file():
        raise UserError(f"expert path: {folder} has no config.json: give a .pt file or a folder with one")
    config = json.loads((folder / "config.json").read_text())
    net = WorldModel(config["model"], nc=config["model"]["nc"], verbose=False)
    net.load_state_dict(read_tensors(folder, FIELD), strict=True)
    return net, config["image_size"]
