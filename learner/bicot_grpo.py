"""BiCoT-GRPO (T2I-R1, arXiv 2505.00703, section 3.3): advantages and losses as pure functions of tensors.

Both levels of a sample share one advantage: the plan's tokens up to the first end token, and all image tokens. What
differs from textbook GRPO, as in the official code: the mean runs over all tokens of a group, plans and images
together, and nothing is clipped in an on-policy update, where the ratio has the value 1 and carries the gradient.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """Loss of a whole batch. loss, kl: scalars, means over unmasked tokens. per_token: (N, L), zero where masked."""

    loss: Tensor
    kl: Tensor
    per_token: Tensor


class TokenLosses(NamedTuple):
    """Figures of single tokens, all of the log-probs' shape."""

    loss: Tensor  # float, before masking and averaging
    kl: Tensor  # float, estimate of KL(policy || reference)
    clipped: Tensor  # bool, where clipping or truncation has cut the gain


def group_advantages(rewards: Tensor, group_size: int, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) inside groups of consecutive samples, unbiased std. rewards: (N,) -> (N,).

    Exactly 0 in a group of equal rewards, where float32 rounding divided by eps would leave up to 0.005.
    """
    groups = rewards.double().view(-1, group_size)
    groups = groups - groups[:, :1]  # equal rewards become exact zeros
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + eps)).view(-1).to(rewards.dtype)


def ragged_advantages(rewards: np.ndarray, group: np.ndarray, std: bool = True, eps: float = 1e-4) -> np.ndarray:
    """`group_advantages` where groups have lost samples. rewards: (N,); group: (N,) group numbers -> (N,) float32.

    A group of one sample or of equal rewards gets exactly 0. `std=False`: no division (Dr. GRPO, arXiv 2503.20783).
    """
    advantages = np.zeros(len(rewards), np.float64)
    for number in np.unique(group):
        members = group == number
        values = rewards[members].astype(np.float64)
        if np.ptp(values) > 0:
            centred = values - values.mean()
            advantages[members] = centred / (values.std(ddof=1) + eps) if std else centred
    return advantages.astype(np.float32)


def nested_advantages(
    rewards: np.ndarray, group: np.ndarray, plan: np.ndarray, std: bool = True, eps: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """Credit for each level where a plan has several images: (of the plan, of the image), each (N,) float32.

    A plan is worth the mean reward of its images and is compared with the other plans of its prompt; an image is
    compared with the other images of its plan, in units of the group's pooled spread inside plans. So neither level
    is praised for the other's luck. An image that is alone with its plan stands for it and shares its advantage: with
    one image per plan both are `ragged_advantages`.
    rewards: (N,); group, plan: (N,) numbers of the prompt and of the plan, plans numbered across groups.
    """
    _, first, index = np.unique(plan, return_index=True, return_inverse=True)
    images = np.bincount(index)
    value = np.bincount(index, weights=rewards.astype(np.float64)) / images
    semantic = ragged_advantages(value, group[first], std, eps)[index]
    deviation = rewards - value[index]
    image = np.where(images[index] == 1, semantic, deviation)
    for number in np.unique(group):
        inside = (group == number) & (images[index] > 1)
        freedom = inside.sum() - len(np.unique(plan[inside]))
        if std and freedom and np.abs(deviation[inside]).max() > 0:
            image[inside] /= np.sqrt(np.square(deviation[inside]).sum() / freedom) + eps
    return semantic, image.astype(np.float32)


def completion_mask(completion_ids: Tensor, eos_token_id: int) -> Tensor:
    """(N, L) ids -> (N, L) int64 ones up to and including the first end token; all ones in a row without one."""
    is_eos = (completion_ids == eos_token_id).long()
    return (is_eos.cumsum(1) - is_eos == 0).long()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k3") -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens of the policy, with d = ref - policy.

    k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (J. Schulman, "Approximating KL Divergence"); k3 is the official one.
    """
    difference = ref_logprobs - logprobs
    if kind == "k1":
        return -difference
    if kind == "k2":
        return difference.square() / 2
    return difference.expm1() - difference


def token_losses(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    beta: float,
    *,
    old_logprobs: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl: str = "k3",
    max_ratio: Tensor | None = None,
) -> TokenLosses:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + beta kl of every token; arguments broadcast.

    `old_logprobs=None`: on-policy, the ratio is 1 in value and nothing is clipped. Two bounds: DAPO, arXiv 2503.14476.
    `max_ratio`: no clipping but a truncated importance weight, -min(ratio, max_ratio) A grad log p, which corrects
    for samples of an older policy and keeps their gradient (IMPALA, arXiv 1802.01561).
    """
    divergence = kl_estimate(logprobs, ref_logprobs, kl)
    if old_logprobs is None:
        gain = (logprobs - logprobs.detach()).exp() * advantages
        return TokenLosses(beta * divergence - gain, divergence, torch.zeros_like(gain, dtype=torch.bool))
    ratio = (logprobs - old_logprobs).exp()
    if max_ratio is not None:
        weight = ratio.detach().minimum(max_ratio)
        gain = weight * (logprobs - logprobs.detach()).exp() * advantages
        return TokenLosses(beta * divergence - gain, divergence, ratio > max_ratio)
    gain = ratio * advantages
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return TokenLosses(beta * divergence - torch.minimum(gain, bounded), divergence, bounded < gain)


def policy_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    beta: float,
    old_logprobs: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl: str = "k3",
) -> PolicyLoss:
    """Loss of a batch in one piece, averaged over its unmasked tokens as the official trainer does per process.

    logprobs, ref_logprobs, mask, old_logprobs: (N, L), both segments side by side; advantages: (N,). What stands at
    masked positions, NaN and infinity included, reaches neither the values nor the gradient.
    """
    kept = mask.bool()
    logprobs, ref_logprobs = logprobs.where(kept, 0.0), ref_logprobs.where(kept, 0.0)
    old_logprobs = None if old_logprobs is None else old_logprobs.where(kept, 0.0)
    options = {"old_logprobs": old_logprobs, "clip_low": clip_low, "clip_high": clip_high, "kl": kl}
    tokens = token_losses(logprobs, ref_logprobs, advantages[:, None], beta, **options)
    per_token, divergence = tokens.loss.where(kept, 0.0), tokens.kl.where(kept, 0.0)
    count = kept.sum()
    return PolicyLoss(per_token.sum() / count, divergence.sum() / count, per_token)


def token_weights(
    semantic_lengths: np.ndarray,
    image_lengths: np.ndarray,
    group: np.ndarray,
    average: str = "group",
    semantic_weight: float = 1.0,
    image_weight: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """What each token of each sample weighs in the batch's loss, so that loss = sum of weight * token loss.

    With the averaging inside the weights, any split into micro-batches and ranks gives the same gradient.
    average: "group" token mean per prompt group, then mean of groups (official); "token" one mean over all tokens
        (DAPO, arXiv 2503.14476); "sequence" token mean per sample, then mean of samples (GRPO, arXiv 2402.03300).
    semantic_weight, image_weight: multiply the segments' shares afterwards.
    All arrays (N,); returns (semantic, image), each (N,) float32.
    """
    lengths = (semantic_lengths + image_lengths).astype(np.float64)
    if average == "group":
        _, inverse = np.unique(group, return_inverse=True)
        tokens = np.bincount(inverse, weights=lengths)
        base = 1 / (tokens[inverse] * len(tokens))
    elif average == "token":
        base = np.full(len(lengths), 1 / lengths.sum())
    else:
        base = 1 / (lengths * len(lengths))
    return (base * semantic_weight).astype(np.float32), (base * image_weight).astype(np.float32)
