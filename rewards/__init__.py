"""Reward experts: frozen models that look at an image and its prompt and return a number. Nothing here knows of Ray.

`load_expert` opens one expert; `rewards.ensemble` combines the scores of several; `rewards.detection` holds the
detector's scoring rules as pure functions. `python -m rewards.score` scores a folder of images from the shell.
"""

from rewards.base import Expert, ExpertScores, NonFiniteScore
from rewards.batched import BatchedExpert
from rewards.experts import EXPERTS, load_expert

__all__ = ["EXPERTS", "BatchedExpert", "Expert", "ExpertScores", "NonFiniteScore", "load_expert"]
