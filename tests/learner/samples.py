"""Random learner batches for the tiny Janus, and the slow, plain way to compute and learn what they should give."""

from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from learner.bicot_grpo import token_weights
from t2ir1_ray.janus.policy import freeze
from t2ir1_ray.records.schema import LearnerBatch
from tests.tiny_janus import IMAGE_CODES, IMAGE_TOKENS, VOCABULARY, tiny_model

SAMPLES, BETA, RATE = 7, 0.05, 1e-3
PAD_ID = 2
GROUPS = np.array([0, 0, 0, 1, 1, 2, 2])


def random_batch(seed: int) -> LearnerBatch:
    """Three groups, each with one planning prompt; sampling and reference log-probs lie near those of the policy."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[np.ndarray]:
        return [rng.integers(7, VOCABULARY, rng.integers(low, high)).astype(np.int32) for _ in range(SAMPLES)]

    prompts, plans = ids(4, 9), ids(1, 12)
    lengths = np.array([len(plan) for plan in plans])
    semantic_weight, image_weight = token_weights(lengths, np.full(SAMPLES, IMAGE_TOKENS), GROUPS)
    columns: dict[str, Any] = {
        "prompt_id": [str(group) for group in GROUPS],
        "sample": np.array([0, 1, 2, 0, 1, 0, 1], np.int32),
        "semantic_prompt_ids": [prompts[group] for group in GROUPS],
        "semantic_ids": plans,
        "image_prompt_ids": ids(5, 20),
        "image_ids": rng.integers(0, IMAGE_CODES, (SAMPLES, IMAGE_TOKENS)).astype(np.int32),
        "semantic_advantage": rng.normal(size=SAMPLES).astype(np.float32),
        "image_advantage": rng.normal(size=SAMPLES).astype(np.float32),
        "semantic_token_weight": semantic_weight,
        "image_token_weight": image_weight,
    }
    model = tiny_model(0)
    with torch.no_grad():
        own = [naive_logprobs(model, columns, row) for row in range(SAMPLES)]
    for kind in ("", "ref_"):
        noisy = [[(x.numpy() + rng.normal(0, 0.2, len(x))).astype(np.float32) for x in pair] for pair in own]
        columns[f"semantic_{kind}logprobs"] = [pair[0] for pair in noisy]
        columns[f"image_{kind}logprobs"] = np.stack([pair[1] for pair in noisy])
    return LearnerBatch(**columns)


def naive_logprobs(
    model: Any, columns: dict[str, Any], row: int, guidance: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(plan, image) log-probs of one sample: full heads at every position, no padding, no batching."""
    prompt, plan, image_prompt, codes = (
        torch.from_numpy(columns[name][row].astype(np.int64))
        for name in ("semantic_prompt_ids", "semantic_ids", "image_prompt_ids", "image_ids")
    )
    hidden = model.model.language_model(input_ids=torch.cat([prompt, plan])[None]).last_hidden_state
    text = model.lm_head(hidden)[0].log_softmax(-1)[len(prompt) - 1 : -1]
    drawn = model.prepare_embeddings_for_image_generation(codes[None])

    def logits(prompt_ids: torch.Tensor) -> torch.Tensor:
        embeds = torch.cat([model.get_input_embeddings()(prompt_ids)[None], drawn], 1)
        hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state
        return model.model.generation_head(hidden)[0][len(prompt_ids) - 1 : -1]

    image = logits(image_prompt)
    if guidance != 1.0:
        unconditional = image_prompt.clone()
        unconditional[1:-1] = PAD_ID
        plain = logits(unconditional)
        image = plain + guidance * (image - plain)
    return text.gather(1, plan[:, None])[:, 0], image.log_softmax(-1).gather(1, codes[:, None])[:, 0]


def plain_training(
    batches: list[LearnerBatch], on_policy: bool = True, lora: LoraConfig | None = None, guidance: float = 1.0
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and parameters when torch.optim.AdamW does the updates, sample by sample, formulas written out.

    With LoRA by peft's own wrapper, merged at the end: all parameters that it changed.
    """
    model = tiny_model(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = freeze(model)
    if lora:
        torch.manual_seed(0)
        wrapped = get_peft_model(model, lora)
        parameters = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, weight_decay=0.0)
    losses = []
    for data in batches:
        total = 0.0
        for row in range(SAMPLES):
            loss = 0.0
            pair = naive_logprobs(model, vars(data), row, guidance)
            for kind, logprobs in zip(("semantic", "image"), pair, strict=True):
                reference = torch.tensor(getattr(data, f"{kind}_ref_logprobs")[row])
                sampled = torch.tensor(getattr(data, f"{kind}_logprobs")[row])
                kl = (reference - logprobs).exp() - (reference - logprobs) - 1
                ratio = (logprobs - (logprobs.detach() if on_policy else sampled)).exp()
                advantage = float(getattr(data, f"{kind}_advantage")[row])
                gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                loss = loss + float(getattr(data, f"{kind}_token_weight")[row]) * (BETA * kl - gain).sum()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    if lora:
        merged = wrapped.merge_and_unload().state_dict()
        return losses, {name: tensor for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    return losses, {name: parameter.detach() for name, parameter in parameters.items()}
