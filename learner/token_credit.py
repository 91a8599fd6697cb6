"""Token credit: how a sample's advantage is shared out among its tokens. Pure functions.

A factor of 1 everywhere is plain GRPO. The factors multiply the advantage, those of `critical_tokens` the weight of a
token in the loss, and with it the KL term. Their mean is 1 over a sample's tokens of a segment, for similarity over a
group's image tokens: credit moves between tokens, and the step stays as long. Only `running_confidence` may differ from
it. No gradient goes through them.

| kind | source | on plans | on images |
| --- | --- | --- | --- |
| entropy | EG-GRPO, arXiv 2604.02355 | `entropy_credit` | `entropy_credit` |
| guidance | GCPO, arXiv 2605.29198 | 1 | `guidance_credit` |
| similarity | STAGE, arXiv 2509.25027 | 1 | `group_distances`, to images of the other sign |
| critical | GCPO, arXiv 2509.22485 | 1 | `critical_tokens` and `running_confidence` |

The formulas are those of the code that the papers' authors have released, but for what is said below.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COMPARING = ("similarity", "critical")
"""The kinds that need to know a sample's group, by `group_distances`."""


def entropy_credit(
    entropies: Tensor,
    advantages: Tensor,
    mask: Tensor,
    excluded: float = 0.2,
    raised: float = 0.5,
    bonus: float = 0.3,
) -> Tensor:
    """EG-GRPO (arXiv 2604.02355): nothing for a segment's surest tokens, a bonus for its least sure ones.

    A becomes 0 where the entropy H (nats) is among the lowest `excluded` of the segment's tokens, which leaves them
    the KL term, and A + min(bonus |A|, bonus H) where it is among the highest `raised`: a bad sample's unsure tokens
    are blamed less. Then divided by the mean; the released code does not do that.

    entropies, advantages: (N, L) float; mask: (N, L) bool, tokens. -> (N, L) factors of A, 0 where masked.
    """
    count = mask.sum(1, keepdim=True)
    ordered = entropies.where(mask, torch.inf).sort(1).values

    def at(place: Tensor) -> Tensor:  # entropies in rising order, (N, 1)
        return ordered.gather(1, place.long().clamp(0, mask.shape[1] - 1))

    low, high = at(excluded * count), at(torch.ceil((1 - raised) * count) - 1)
    size = advantages.abs().clamp(min=torch.finfo(advantages.dtype).tiny)
    gain = 1 + advantages.sign() * bonus * (entropies / size).clamp(max=1)
    factors = gain.where(entropies > high, 1.0).where((entropies >= low) & mask, 0.0)
    return factors * count / factors.sum(1, keepdim=True).clamp(min=1e-6)  # of a row without tokens


def guidance_credit(contrast: Tensor, share: float = 0.4, mass: float = 0.8) -> Tensor:
    """Guidance contrast (arXiv 2605.29198): credit to the tokens that the prompt decides.

    A token's weight grows with the rank of its KL(conditional || unconditional), estimated by k3 at the token that was
    drawn: percentile ** power, such that the highest `share` of the tokens hold `mass` of the credit. Equal tokens
    share their mean rank.

    contrast: (N, L) log p(token | no prompt) - log p(token | prompt). -> (N, L), mean 1.
    """
    difference = contrast.clamp(-20, 20)
    divergence = difference.expm1() - difference
    ordered = divergence.sort(1).values
    below, within = (torch.searchsorted(ordered, divergence, right=right) for right in (False, True))
    power = math.log(1 - mass) / math.log(1 - share) - 1
    weights = ((below + within + 1) / (2 * contrast.shape[1])) ** power
    return weights / weights.mean(1, keepdim=True)


def group_distances(
    codes: np.ndarray, group: np.ndarray, codebook: np.ndarray, advantages: np.ndarray | None = None
) -> np.ndarray:
    """How far image tokens lie from what their group's other images have at the same place.

    (1 - cosine) / 2 of the VQ model's vectors, averaged over other images, in units of the group's mean.

    advantages: STAGE (arXiv 2509.25027): only images whose advantage has another sign (or is 0) count. Such images
        pull in opposite directions, and where they look alike, for nothing. The distances are then the factors of
        the advantage. The paper reweights the KL term too, which stays as it is here.
    None: one distance per place, the mean over all pairs: what `critical_tokens` takes.

    codes: (N, I) int; group: (N,) numbers; codebook: (V, D); advantages: (N,) of the images.
    -> (N, I) float32, mean 1 in each group; all 1 where a group's images are equal or alone.
    """
    vectors = codebook.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    found = np.ones(codes.shape)
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        ids, own = codes[members], vectors[codes[members]]
        distance = (1 - np.einsum("gid,hid->ghi", own, own)) / 2
        distance[ids[:, None] == ids[None]] = 0.0  # rounding would make noise of it where nothing else is
        compared = ~np.eye(len(members), dtype=bool)
        if advantages is not None:
            compared &= np.outer(advantages[members], advantages[members]) <= 0
        mean = (distance * compared[..., None]).sum(1) / compared.sum(1).clip(1)[:, None]
        if advantages is None:
            mean = np.broadcast_to(mean.mean(0), mean.shape)
        if mean.any():
            found[members] = mean / mean.mean()
    return found.astype(np.float32)


def critical_tokens(entropies: Tensor, distances: Tensor, share: float = 0.1) -> Tensor:
    """GCPO (arXiv 2509.22485): the tokens of an image that are trained on at all, three times `share` of them.

    The first ones, on which all others depend; of the rest, without the last `share`, those where the map of entropies
    is steepest, the borders of what is seen; and of what is left those that differ most inside the group. The map is
    smoothed over a token and its four neighbours that were drawn before it.

    entropies: (N, I) of a square image, row by row; distances: (N, I) of `group_distances`, where the paper takes the
    aligner's embeddings for the codebook's. -> (N, I) factors of the token weights, so of the KL term too: mean 1.
    """
    length = entropies.shape[1]
    side, count = math.isqrt(length), max(1, int(share * length))
    place = torch.arange(length, device=entropies.device)
    first, inner = place < count, (place >= count) & (place < length - count)
    edges = _highest(_steepness(entropies.view(-1, side, side)).flatten(1).where(inner, -torch.inf), count)
    chosen = edges | _highest(distances.where(~(first | edges), -torch.inf), count) | first
    return chosen / chosen.float().mean(1, keepdim=True)


def running_confidence(logprobs: Tensor, ref_logprobs: Tensor, bound: float = 0.5) -> Tensor:
    """GCPO's dynamic weight (arXiv 2509.22485): the mean of policy / reference probabilities over the tokens so far.

    Log ratios are clipped to +-bound. The released code lets a gradient through it; here it is a factor of the
    advantage as any other. Its mean is near 1 as long as the policy is near the reference.
    logprobs, ref_logprobs: (N, I). -> (N, I)
    """
    ratio = (logprobs - ref_logprobs).clamp(-bound, bound).exp()
    so_far = torch.ones(ratio.shape[1], ratio.shape[1], device=ratio.device).triu()
    return ratio @ (so_far / so_far.sum(0))  # CUDA has no deterministic cumsum


def _highest(values: Tensor, count: int) -> Tensor:
    """(N, L) bool: the `count` highest of every row; of equal ones the first."""
    places = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, places, True)


def _steepness(maps: Tensor) -> Tensor:
    """(N, H, W): length of the gradient, by central differences, of the maps smoothed by `critical_tokens`' mean."""

    def total(values: Tensor) -> Tensor:  # of the token, left of it, and the three above it
        padded = F.pad(values, (1, 1, 1, 0))
        above, row = padded[:, :-1], padded[:, 1:]
        return row[..., 1:-1] + row[..., :-2] + above[..., :-2] + above[..., 1:-1] + above[..., 2:]

    down, right = torch.gradient(total(maps) / total(torch.ones_like(maps)), dim=(1, 2))
    return torch.hypot(down, right)
