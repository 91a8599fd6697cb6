"""What benchmarks share: prompts to draw, images to judge, and means with their standard errors."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from t2ir1_ray.config import ExpertConfig
from t2ir1_ray.errors import UserError

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels; y grows downward."""

SIGNS = 10_000
"""Choices of signs that a test looks at."""

Call = Callable[..., Any]
"""`call(judge, method, *arguments)` starts a method of a judge and returns a handle of its answer: one per image.
A handle may be an argument of another call."""


class Found(NamedTuple):
    """An object that a detector saw."""

    label: str
    score: float
    box: Box
    mask: np.ndarray | None = None  # bool (H, W), of detectors that segment


@dataclass(frozen=True)
class Item:
    """One prompt of a benchmark."""

    prompt_id: str
    prompt: str
    category: str
    index: int  # its place in its file, from 0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """One image, the plan it was drawn after ("" without semantic-CoT), and what the judges said about it."""

    plan: str
    pixels: np.ndarray  # (H, W, 3) uint8
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A number that is reported: the mean of `metric` over prompts."""

    name: str
    metric: str
    shares: Mapping[str, float] | None  # weight of each category's mean; None: all prompts alike


class Estimate(NamedTuple):
    """A mean and its standard error over prompts (each prompt's images and seeds are averaged first)."""

    mean: float
    stderr: float  # NaN for a single prompt
    prompts: int


class Benchmark(ABC):
    """A published protocol: what is asked of the judges about an image, and what their answers are worth."""

    name: ClassVar[str]
    images_per_prompt: ClassVar[int]  # as published
    needs: ClassVar[dict[str, ExpertConfig]] = {}  # judges besides the verifier; a path is for the user to name

    def __init__(self, experts: Mapping[str, ExpertConfig]):
        self.experts = experts
        self.judge_options: Mapping[str, Any] = {}  # of the protocol, for a judge that is a language model

    @abstractmethod
    def read(self, path: Path | None) -> list[Item]:
        """Prompts in file order. Raises UserError that names the bad line."""

    def judges(self, items: Sequence[Item]) -> set[str]:
        """Which of `needs` these prompts need."""
        return set(self.needs)

    def notes(self) -> dict[str, str]:
        """What else a reader of the numbers must know; kept with the settings."""
        return {}

    def observe(self, item: Item, rollouts: Any, call: Call) -> dict[str, Any]:
        """Ask the judges about all images of a prompt (`rollouts`, a handle); handles of their answers by name."""
        return {}

    @abstractmethod
    def score(self, item: Item, view: View) -> dict[str, float | None]:
        """Metrics of one image; None where a judge gave no answer that can be read."""

    @abstractmethod
    def figures(self, items: Sequence[Item]) -> list[Figure]:
        """What is reported about these prompts, the most important figure first."""

    @abstractmethod
    def image_path(self, item: Item, number: int, count: int) -> str:
        """Where image `number` of `count` belongs, in the layout of the official evaluator."""

    def sidecars(self, item: Item) -> dict[str, str]:
        """Text files that the official evaluator expects beside the images: path -> content."""
        return {}


def one_per_category(items: Sequence[Item], metric: str) -> list[Figure]:
    return [Figure(name, metric, {name: 1.0}) for name in dict.fromkeys(item.category for item in items)]


def estimate(figure: Figure, category_of: Mapping[str, str], values: Mapping[str, Sequence[float]]) -> Estimate | None:
    """The figure from all values of each prompt (by prompt_id); None if a category that it needs has no value.

    Standard error: over prompts inside each category, sqrt(sum of (share * s / sqrt(n))^2), s with n - 1.
    """
    strata: dict[str, list[float]] = {}
    for prompt_id, found in values.items():
        if found:
            stratum = "" if figure.shares is None else category_of[prompt_id]
            strata.setdefault(stratum, []).append(float(np.mean(found)))
    shares = {"": 1.0} if figure.shares is None else figure.shares
    if any(name not in strata for name in shares):
        return None
    mean = math.fsum(share * float(np.mean(strata[name])) for name, share in shares.items())
    variance = math.fsum(
        share**2 * (float(np.var(strata[name], ddof=1)) if len(strata[name]) > 1 else math.nan) / len(strata[name])
        for name, share in shares.items()
    )
    return Estimate(mean, math.sqrt(variance), sum(len(strata[name]) for name in shares))


def sign_flip_p(figure: Figure, category_of: Mapping[str, str], differences: Mapping[str, float]) -> float:
    """p of the paired two-sided test that two things to compare are the same, on a figure's difference.

    differences: of each prompt, by prompt_id. If there is none, each may as well have the other sign: p is the share of
    all choices of signs, or of 10,000 drawn ones, whose figure is as far from 0 as the one that was found.
    """
    strata: dict[str, list[float]] = {}
    for prompt_id, difference in differences.items():
        strata.setdefault("" if figure.shares is None else category_of[prompt_id], []).append(difference)
    shares = {"": 1.0} if figure.shares is None else figure.shares
    parts = np.concatenate([share * np.array(strata[name]) / len(strata[name]) for name, share in shares.items()])
    if 2 ** len(parts) <= SIGNS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(parts))))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), (SIGNS, len(parts)))
        signs[0] = 1.0  # what was found is one of them
    reached = np.abs(signs @ parts)
    return float(np.mean(reached >= reached[0] - 1e-12))


def need_path(path: Path | None, what: str) -> Path:
    if path is None:
        raise UserError(f"--prompts: missing: give {what}")
    try:
        if path.exists():
            return path
    except OSError as error:  # a name that is too long
        raise UserError(f"--prompts: {str(path)[:200]}: {error.strerror}") from None
    raise UserError(f"--prompts: {path} does not exist: give {what}")
