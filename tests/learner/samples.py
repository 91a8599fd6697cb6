"""Random learner batches for the tiny Janus, and the slow, plain way to compute and learn what they should give."""

from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from learner import token_credit
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
        "image_distance": list(np.random.default_rng(seed).random((SAMPLES, IMAGE_TOKENS), np.float32)),
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
    plan, image = naive_distributions(model, columns, row, guidance)
    return _drawn(plan, columns["semantic_ids"][row]), _drawn(image, columns["image_ids"][row])


def naive_distributions(
    model: Any, columns: dict[str, Any], row: int, guidance: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(plan, image) log-probs of every token that could have been drawn, (L, V) and (I, codes)."""
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
    return text, image.log_softmax(-1)


def _drawn(distribution: torch.Tensor, ids: np.ndarray) -> torch.Tensor:
    return distribution.gather(1, torch.from_numpy(ids.astype(np.int64))[:, None])[:, 0]


def naive_loss(
    model: Any,
    data: LearnerBatch,
    row: int,
    on_policy: bool = True,
    guidance: float = 1.0,
    credit: str = "none",
    pull: tuple[float, float] = (0.0, 0.0),
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One sample's part of the loss, and the entropies of its plan's and its image's tokens.

    credit: `learner.token_credit`; pull: weights of the entropies of plans and images.
    """
    columns = vars(data)
    loss, entropies = torch.zeros(()), []
    for kind, distribution, held in zip(
        ("semantic", "image"), naive_distributions(model, columns, row, guidance), pull, strict=True
    ):
        logprobs = _drawn(distribution, columns[f"{kind}_ids"][row])
        entropy = -(distribution.exp() * distribution).sum(-1)
        reference = torch.tensor(columns[f"{kind}_ref_logprobs"][row])
        sampled = torch.tensor(columns[f"{kind}_logprobs"][row])
        advantage = torch.full_like(reference, columns[f"{kind}_advantage"][row])
        weight = torch.full_like(reference, columns[f"{kind}_token_weight"][row])
        loss = loss - held * (weight * entropy).sum()
        one = (values.detach()[None] for values in (logprobs, entropy, advantage))
        gain, share = _naive_credit(credit, kind, model, data, row, *one)
        kl = (reference - logprobs).exp() - (reference - logprobs) - 1
        ratio = (logprobs - (logprobs.detach() if on_policy else sampled)).exp()
        gains = torch.minimum(ratio * advantage * gain, ratio.clamp(0.8, 1.2) * advantage * gain)
        loss = loss + (weight * share * (BETA * kl - gains)).sum()
        entropies.append(entropy.detach())
    return loss, entropies


def _naive_credit(
    credit: str,
    kind: str,
    model: Any,
    data: LearnerBatch,
    row: int,
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    advantage: torch.Tensor,
) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Factors of a segment's advantages and of its token weights; tensors (1, L)."""
    if credit == "entropy":
        return token_credit.entropy_credit(entropy, advantage, torch.ones_like(entropy, dtype=torch.bool))[0], 1.0
    if kind == "semantic" or credit == "none":
        return 1.0, 1.0
    distances = torch.from_numpy(data.image_distance[row])
    if credit == "similarity":
        return distances, 1.0
    if credit == "critical":
        reference = torch.from_numpy(data.image_ref_logprobs[row])
        share = token_credit.critical_tokens(entropy, distances[None])[0]
        return token_credit.running_confidence(logprobs, reference[None])[0], share
    with torch.no_grad():
        bare, prompted = (naive_logprobs(model, vars(data), row, guidance)[1] for guidance in (0.0, 1.0))
    return token_credit.guidance_credit((bare - prompted)[None])[0], 1.0


def plain_training(
    batches: list[LearnerBatch],
    on_policy: bool = True,
    lora: LoraConfig | None = None,
    guidance: float = 1.0,
    credit: str = "none",
    band: tuple[float, float] | None = None,
    most: float = 0.0,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and parameters when torch.optim.AdamW does the updates, sample by sample, formulas written out.

    With LoRA by peft's own wrapper, merged at the end: all parameters that it changed.
    credit, band, most: `learner.token_credit`, `learner.entropy_band`, `learner.entropy_weight`.
    """
    model = tiny_model(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = freeze(model)
    if lora:
        torch.manual_seed(0)
        wrapped = get_peft_model(model, lora)
        parameters = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, weight_decay=0.0)
    losses, pull, start = [], np.zeros(2), None
    for data in batches:
        total, entropies = 0.0, []
        for row in range(SAMPLES):
            loss, found = naive_loss(model, data, row, on_policy, guidance, credit, tuple(pull.tolist()))
            loss.backward()
            total += loss.item()
            entropies.append(found)
        mean = np.array([float(torch.cat(tokens).mean()) for tokens in zip(*entropies, strict=True)])
        start = mean if start is None else start
        if band:
            outside = mean / start - (mean / start).clip(*band)
            pull = 0.9 * pull - 0.1 * most * outside
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    if lora:
        merged = wrapped.merge_and_unload().state_dict()
        return losses, {name: tensor for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    return losses, {name: parameter.detach() for name, parameter in parameters.items()}
