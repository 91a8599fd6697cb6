"""Every expert at its published size with random weights: rate, memory, and what a narrower dtype changes.

The expert classes are the project's own, opened from folders without weights: those are drawn on the device, where
loading would read them from a file.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import open_clip
import torch
from transformers import (
    CLIPImageProcessor,
    GitConfig,
    GroundingDinoConfig,
    GroundingDinoImageProcessor,
    LlavaOnevisionConfig,
)

from rewards.base import Expert
from rewards.experts import load_expert
from rewards.orm import VISION_TOWERS
from t2ir1_ray.checkpoints.word_tokenizers import save_word_tokenizer
from t2ir1_ray.errors import RunError
from t2ir1_ray.fitting.published import published_parameters
from tests.gpu.measure import DEVICE, GB, clock, peak_gb
from tests.gpu.models import drawn
from tests.rewards import tiny_experts
from tests.rewards.tiny_experts import ROWS, WORDS, random_images, save_bert_tokenizer

BATCH = 16


class Kind(NamedTuple):
    """An expert of the recipe: checkpoint, dtype, and the functions that write its folder, real and tiny."""

    checkpoint: str
    dtype: str
    write: Callable[[Path], object]
    write_tiny: Callable[[Path], object]


def figures(tiny: bool) -> Iterator[dict[str, object]]:
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (kind.write_tiny if tiny else kind.write)(folder)
            try:
                for found in _measured(_opened(name, folder, kind.dtype), kind, 3 if tiny else BATCH):
                    yield {"expert": name, **found}
            except Exception as error:  # of one expert: the others are measured all the same
                yield {"expert": name, "error": repr(error)[:500]}
        torch.cuda.empty_cache()


def _measured(expert: Expert, kind: Kind, count: int) -> Iterator[dict[str, object]]:
    images = random_images(count, 384, 384)
    rows = [ROWS[index % 3] for index in range(count)]
    model = expert.model
    yield {
        "dtype": kind.dtype,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "published_parameters": published_parameters(kind.checkpoint),
        "weights_GB": sum(parameter.nbytes for parameter in model.parameters()) / GB,
    }

    def rate(batch_size: int) -> float:
        expert.batch_size = batch_size
        return count / clock(lambda: expert.score(images, rows), repeats=2, warmup=1)

    single, batched = rate(1), rate(BATCH)
    peak = peak_gb(lambda: expert.score(images, rows))
    yield {"images_per_s_one_at_a_time": single, "images_per_s_batched": batched, "batch": count, "peak_GB": peak}
    scores = expert.score(images, rows).scores
    other = "float32" if kind.dtype == "bfloat16" else "bfloat16"
    expert.dtype = getattr(torch, other)
    model.to(expert.dtype)
    try:
        changed = expert.score(images, rows).scores
    except (RuntimeError, RunError) as error:  # which dtypes a model can take is a finding
        yield {"dtype": other, "refused": str(error)[:200]}
    else:
        off = np.abs(changed - scores)
        spread = float(scores.std())
        yield {"dtype": other, "images_per_s_batched": rate(BATCH), "max_difference": float(off.max()), "std": spread}


def _opened(name: str, folder: Path, dtype: str) -> Expert:
    local = (folder / "open_clip_config.json").exists()
    options = {"arch": f"local-dir:{folder}"} if local else {}
    with ExitStack() as stack:
        for module in ("vqa", "grounding_dino", "orm"):
            stack.enter_context(patch(f"rewards.{module}.load_pretrained", _random_pretrained))
        stack.enter_context(patch("rewards.hps.load_clip", _random_clip))
        return load_expert(name, str(folder), device=DEVICE.type, dtype=dtype, batch_size=BATCH, **options)


def _random_pretrained(model_class: Any, path: str, device: str, dtype: str, **options: Any) -> torch.nn.Module:
    config = options.get("config") or model_class.config_class.from_pretrained(path)
    with drawn(getattr(torch, dtype)):
        model = model_class(config)
    return model.to(device).requires_grad_(False).eval()  # GroundingDINO makes a parameter on the CPU whatever is set


def _random_clip(path: str, arch: str, device: str, dtype: str) -> tuple[torch.nn.Module, Any]:
    with drawn(getattr(torch, dtype)):
        model = open_clip.CLIP(**open_clip.get_model_config(arch))
    return model.requires_grad_(False).eval(), open_clip.get_tokenizer(arch)


def _write_git(folder: Path) -> None:
    save_word_tokenizer(folder, WORDS)
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    GitConfig(vision_config={**vision, "image_size": 480, "patch_size": 14}).save_pretrained(folder)
    size = {"height": 480, "width": 480}
    CLIPImageProcessor(size={"shortest_edge": 480}, crop_size=size).save_pretrained(folder)


def _write_grounding_dino(folder: Path) -> None:
    save_bert_tokenizer(folder)
    GroundingDinoConfig(disable_custom_kernels=True).save_pretrained(folder)
    GroundingDinoImageProcessor().save_pretrained(folder)


def _write_orm(folder: Path) -> None:
    save_word_tokenizer(folder, WORDS)
    text = {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    }
    tower = VISION_TOWERS["google/siglip-so400m-patch14-384"]
    LlavaOnevisionConfig(
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **tower},
        image_token_index=151646,
        video_token_index=151647,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    ).save_pretrained(folder)


KINDS = {
    "hps": Kind("hps_v2.1_compressed.pt", "float32", lambda folder: None, tiny_experts.write_open_clip_folder),
    "git": Kind("git-large-vqav2", "float32", _write_git, tiny_experts.write_git_folder),
    "grounding_dino": Kind(
        "grounding-dino-tiny", "float32", _write_grounding_dino, tiny_experts.write_grounding_dino_folder
    ),
    "orm": Kind("orm-t2i-r1", "bfloat16", _write_orm, tiny_experts.write_orm_folder),
}
