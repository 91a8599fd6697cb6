"""The shipped policy."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, JanusForConditionalGeneration

from t2ir1_ray.config import SHIPPED, PolicyConfig
from t2ir1_ray.janus.policy import PromptFormat

POLICY = Path(str(SHIPPED)) / "policy"


@pytest.fixture(scope="session")
def base() -> JanusForConditionalGeneration:
    """Through plain transformers, nothing of this project."""
    return JanusForConditionalGeneration.from_pretrained(POLICY, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def shipped_form() -> PromptFormat:
    """With the tokenizer as it is read back from the folder."""
    return PromptFormat(AutoTokenizer.from_pretrained(POLICY), PolicyConfig(path=str(POLICY)))
