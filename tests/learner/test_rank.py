"""DeepSpeed ranks against plain PyTorch on the same tiny Janus, and log-probs against one unpadded pass per sample."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from learner.bicot_grpo import token_weights
from learner.logprobs import score_rollouts
from t2ir1_ray.policy import freeze
from t2ir1_ray.schema import LearnerBatch
from tests.learner.ranks import run_ranks
from tests.tiny_janus import IMAGE_CODES, IMAGE_TOKENS, tiny_model

SAMPLES, STEPS, BETA, RATE = 6, 3, 0.05, 1e-3


def batch(seed: int) -> LearnerBatch:
    """Random samples of three groups with plans of different lengths."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[np.ndarray]:
        return [rng.integers(7, 64, rng.integers(low, high)).astype(np.int32) for _ in range(SAMPLES)]

    plans = ids(1, 12)
    lengths = np.array([len(plan) for plan in plans])
    weights = token_weights(lengths, np.full(SAMPLES, IMAGE_TOKENS), np.repeat([0, 1, 2], 2))
    image = rng.normal(-3, 0.5, (SAMPLES, IMAGE_TOKENS)).astype(np.float32)
    semantic = [rng.normal(-3, 0.5, len(plan)).astype(np.float32) for plan in plans]
    return LearnerBatch(
        prompt_id=[str(i // 2) for i in range(SAMPLES)],
        semantic_prompt_ids=ids(4, 9),
        semantic_ids=plans,
        semantic_logprobs=semantic,
        semantic_ref_logprobs=semantic,
        image_prompt_ids=ids(5, 20),
        image_ids=rng.integers(0, IMAGE_CODES, (SAMPLES, IMAGE_TOKENS)).astype(np.int32),
        image_logprobs=image,
        image_ref_logprobs=image,
        advantage=rng.normal(size=SAMPLES).astype(np.float32),
        semantic_token_weight=weights[0],
        image_token_weight=weights[1],
    )


def naive_logprobs(model: Any, data: LearnerBatch, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(plan, image) log-probs of one sample: full heads at every position, no padding, no batching."""
    prompt, plan = (torch.from_numpy(x[row].astype(np.int64)) for x in (data.semantic_prompt_ids, data.semantic_ids))
    hidden = model.model.language_model(input_ids=torch.cat([prompt, plan])[None]).last_hidden_state
    text = model.lm_head(hidden)[0].log_softmax(-1)[len(prompt) - 1 : -1]
    image_prompt = torch.from_numpy(data.image_prompt_ids[row].astype(np.int64))
    codes = torch.from_numpy(data.image_ids[row].astype(np.int64))
    drawn = model.prepare_embeddings_for_image_generation(codes[None])
    embeds = torch.cat([model.get_input_embeddings()(image_prompt)[None], drawn], 1)
    hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state
    image = model.model.generation_head(hidden)[0].log_softmax(-1)[len(image_prompt) - 1 : -1]
    return text.gather(1, plan[:, None])[:, 0], image.gather(1, codes[:, None])[:, 0]


def plain_training(batches: list[LearnerBatch]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same updates by torch.optim.AdamW, sample by sample."""
    model = tiny_model(0)
    parameters = freeze(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, weight_decay=0.0)
    losses = []
    for data in batches:
        total = 0.0
        for row in range(SAMPLES):
            pair = naive_logprobs(model, data, row)
            references = data.semantic_ref_logprobs[row], data.image_ref_logprobs[row]
            weights = data.semantic_token_weight[row], data.image_token_weight[row]
            loss = 0.0
            for logprobs, reference, weight in zip(pair, references, weights, strict=True):
                difference = torch.tensor(reference) - logprobs
                gain = (logprobs - logprobs.detach()).exp() * float(data.advantage[row])
                loss = loss + float(weight) * (BETA * (difference.exp() - difference - 1) - gain).sum()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_logprobs_do_not_depend_on_padding_or_batching(budget: int) -> None:
    model, data = tiny_model(0), batch(0)
    semantic, image = score_rollouts(
        model, data.semantic_prompt_ids, data.semantic_ids, data.image_prompt_ids, data.image_ids, budget
    )
    for row in range(SAMPLES):
        with torch.no_grad():
            text, drawn = naive_logprobs(model, data, row)
        np.testing.assert_allclose(semantic[row], text.numpy(), atol=1e-5)
        np.testing.assert_allclose(image[row], drawn.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "world", "budget"), [(1, 1, 10_000), (2, 1, 1), (3, 1, 150), (1, 2, 150), (2, 2, 10_000), (3, 2, 60)]
)
def test_deepspeed_learns_what_plain_adamw_learns(
    tiny_janus: Path, tmp_path: Path, stage: int, world: int, budget: int
) -> None:
    batches = [batch(seed) for seed in range(STEPS)]
    losses, expected = plain_training(batches)
    learner = {
        "ranks": world,
        "zero_stage": stage,
        "dtype": "float32",
        "learning_rate": RATE,
        "beta": BETA,
        "tokens_per_batch": budget,
        "gradient_checkpointing": stage == 3,
    }
    cut = [0, 4, 6] if world == 2 else [0, 6]  # unequal shares: ranks differ in their number of micro-batches
    shards: list[list[pa.RecordBatch]] = [
        [data.take(range(a, b)).to_arrow() for a, b in zip(cut[:-1], cut[1:], strict=True)] for data in batches
    ]
    metrics, state = run_ranks(tmp_path / "ranks", tiny_janus, learner, shards)
    for rank in range(world):
        assert [step["loss"] for step in metrics[rank]] == pytest.approx(losses, abs=1e-5)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
