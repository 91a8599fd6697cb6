"""What the recipes of the tiny experts share: scenes, phrases and their truth, noisy pixels, schedule, and the AUC.

The recipes are deterministic: a fixed number of steps, seeded generators, one thread, float32 on the CPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from t2ir1_ray.shapes.world import (
    CELLS,
    COLORS,
    GRID_SIDE,
    IMAGE_SIDE,
    SHAPES,
    TEXTURES,
    Item,
    Scene,
    describe,
    read_scene,
    render,
)

Phrase = tuple[str | None, str | None, str]
"""(texture, colour, shape) of "striped red circle"; no texture means solid, no colour means any."""

Progress = Callable[[str], None]

PATCH_SIDE = 4
PATCHES_PER_SIDE = IMAGE_SIDE // PATCH_SIDE
ATTRIBUTE_SIZES = (1 + len(TEXTURES), 1 + len(COLORS), 1 + len(SHAPES))
"""Classes of a place in the image: nothing, or one of the textures, colours, shapes."""

_WORDS: tuple[Sequence[str], ...] = (TEXTURES, tuple(COLORS), SHAPES)


# --- scenes and phrases ---------------------------------------------------------------------------------------------


def crowded_scene(rng: random.Random, counts: Sequence[int]) -> Scene:
    """A scene in which objects often repeat one another's kind, so that counting and comparing matter."""
    items: list[Item] = []
    for row, col in rng.sample(CELLS, rng.choice(counts)):
        if items and rng.random() < 0.35:
            texture, color, shape = items[-1].texture, items[-1].color, items[-1].shape
        else:
            texture = rng.choice(TEXTURES) if rng.random() < 0.4 else "solid"
            color, shape = rng.choice(_WORDS[1]), rng.choice(SHAPES)
        items.append(Item(texture, color, shape, row, col))
    return tuple(items)


def matches(phrase: Phrase, item: Item) -> bool:
    """Whether the item is what the phrase names."""
    texture, color, shape = phrase
    return (texture or "solid") == item.texture and color in (None, item.color) and shape == item.shape


def phrase_of(item: Item, rng: random.Random, any_color: float = 0.15) -> Phrase:
    """The item's own phrase; with probability `any_color` it leaves the colour open."""
    color = None if rng.random() < any_color else item.color
    return (None if item.texture == "solid" else item.texture), color, item.shape


def near_miss(scene: Scene, rng: random.Random) -> Phrase:
    """An object's phrase with one attribute changed, or with another object's colour; it may be true by chance."""
    item, other = rng.choice(scene), rng.choice(scene)
    words = [item.texture, item.color, item.shape]
    if other.color != item.color and other.shape != item.shape and rng.random() < 0.25:
        words[1] = other.color
        return phrase_of(Item(*words, 0, 0), rng, any_color=0)
    changed = rng.choice((0, 1, 2, 2))  # shapes are the hardest to tell apart
    words[changed] = rng.choice([word for word in _WORDS[changed] if word != words[changed]])
    return phrase_of(Item(*words, 0, 0), rng, any_color=0 if changed == 1 else 0.15)


def variation(scene: Scene, rng: random.Random) -> Phrase:
    """An object's phrase with one attribute drawn anew, or a mix of several objects; about one in three is true."""
    item, other = rng.choice(scene), rng.choice(scene)
    words = [item.texture, item.color, item.shape]
    changed = rng.randrange(4)
    if changed == 3:
        words[1:] = other.color, rng.choice(scene).shape
    else:
        words[changed] = rng.choice(_WORDS[changed])
    return phrase_of(Item(*words, 0, 0), rng)


def scramble(image: np.ndarray, rng: random.Random, share: float) -> np.ndarray:
    """A copy of the image (24, 24, 3) in which a share of the 4 x 4 patches comes from elsewhere: half-formed objects.

    A policy that draws patch by patch makes such images, and an expert must not take them for whole objects.
    """
    source = render(crowded_scene(rng, (4, 6, 8)))
    image = image.copy()
    for row in range(0, IMAGE_SIDE, PATCH_SIDE):
        for col in range(0, IMAGE_SIDE, PATCH_SIDE):
            if rng.random() < share:
                image[row : row + PATCH_SIDE, col : col + PATCH_SIDE] = source[
                    row : row + PATCH_SIDE, col : col + PATCH_SIDE
                ]
    return image


def picture(scene: Scene, rng: random.Random, scrambled: float = 0.2) -> tuple[np.ndarray, Scene]:
    """The scene's image, sometimes scrambled, and what can really be read in it."""
    image = render(scene)
    if rng.random() >= scrambled:
        return image, scene
    image = scramble(image, rng, rng.choice((0.03, 0.1, 0.3)))
    return image, read_scene(image).items


# --- tensors --------------------------------------------------------------------------------------------------------


def to_pixels(images: Sequence[np.ndarray], generator: torch.Generator | None = None, noise: float = 0.06) -> Tensor:
    """(N, 24, 24, 3) uint8 -> (N, 3, 24, 24) float32 in 0..1, each with its own amount of noise up to `noise`."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    if generator is None:
        return pixels
    amount = noise * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return (pixels + amount * torch.randn(pixels.shape, generator=generator)).clamp(-0.1, 1.1)


def attribute_labels(scenes: Sequence[Scene], per_cell: int = PATCHES_PER_SIDE // GRID_SIDE) -> Tensor:
    """(N, P, 3) int64: texture, colour and shape class at the P = (3 * per_cell)^2 places, row-major; 0 is nothing."""
    side = GRID_SIDE * per_cell
    labels = torch.zeros(len(scenes), side, side, len(_WORDS), dtype=torch.long)
    for index, scene in enumerate(scenes):
        for item in scene:
            values = [
                words.index(value) + 1
                for words, value in zip(_WORDS, (item.texture, item.color, item.shape), strict=True)
            ]
            rows = slice(item.row * per_cell, (item.row + 1) * per_cell)
            columns = slice(item.col * per_cell, (item.col + 1) * per_cell)
            labels[index, rows, columns] = torch.tensor(values)
    return labels.view(len(scenes), side * side, len(_WORDS))


def attribute_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over texture, colour and shape of the cross-entropy at every place.

    logits: (N, P, sum(ATTRIBUTE_SIZES)). labels: (N, P, 3). Without this auxiliary task the tiny vision towers do not
    come to tell circle, square and cross apart.
    """
    parts = logits.float().split(ATTRIBUTE_SIZES, dim=-1)
    return sum(cross_entropy(part.flatten(0, 1), labels[..., i].flatten()) for i, part in enumerate(parts))


# --- optimisation ---------------------------------------------------------------------------------------------------


def learning_rates(
    peak: float, steps: int, warmup: int = 50, hold: float = 0.6, floor: float = 0.03
) -> Iterator[float]:
    """One rate per step: linear warm-up, flat until `hold` of the steps, then a linear fall to floor * peak."""
    for step in range(steps):
        rise = min(1.0, (step + 1) / warmup)
        fall = 1.0 if step < hold * steps else max(floor, (steps - step) / ((1 - hold) * steps))
        yield peak * rise * fall


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float = 1.0) -> None:
    """One optimiser step at the given rate, gradient norm clipped."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


def seeded(seed: int) -> tuple[random.Random, torch.Generator]:
    """Seed torch globally (initialisation, dropout) and return the generators for data and for noise."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return random.Random(seed), torch.Generator().manual_seed(seed)


# --- results --------------------------------------------------------------------------------------------------------


def halve(folder: Path) -> None:
    """Rewrite the folder's safetensors in float16. Loading casts them back, so this is only smaller."""
    for file in folder.glob("*.safetensors"):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def auc(scores: np.ndarray, correct: np.ndarray) -> float:
    """Probability that a correct sample scores above a wrong one, ties counting half; NaN if either kind is missing.

    scores: (N,) float. correct: (N,) bool.
    """
    good, bad = scores[correct], scores[~correct]
    if not len(good) or not len(bad):
        return float("nan")
    difference = good[:, None] - bad[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def words_of(phrase: Phrase) -> str:
    return describe(*phrase)
