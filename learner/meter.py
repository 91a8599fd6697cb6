"""Figures of one optimisation step, summed over tokens on the device and reduced over ranks once, at its end."""

import torch
import torch.distributed as dist
from torch import Tensor

from learner.bicot_grpo import TokenLosses, kl_estimate
from learner.logprobs import TokenValues
from learner.packing import MicroBatch

SEGMENTS = ("semantic", "image")
SUMS = ("tokens", "kl", "entropy", "mismatch", "ratio", "clipped", "drift")
_POSITIVE = (1e-3, 1e-2, 0.05, 0.1, 0.2, 0.5, 1.0)
RATIO_EDGES = (*(-edge for edge in reversed(_POSITIVE)), *_POSITIVE)
"""Borders of the bins into which log ratios are counted; the first and the last bin are open."""
WHOLE = 1 << 62
"""More than any number of a token."""


class StepMeter:
    """Add every micro-batch, then call `metrics` on all ranks together."""

    def __init__(self, device: torch.device):
        self.places = torch.zeros(2, dtype=torch.float64, device=device)  # used, padded
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.sums = torch.zeros(len(SEGMENTS), len(SUMS), dtype=torch.float64, device=device)
        self.peaks = torch.zeros(len(SEGMENTS), 2, dtype=torch.float64, device=device)  # of ratio and |log ratio|
        self.edges = torch.tensor(RATIO_EDGES, device=device)
        self.bins = torch.zeros(len(SEGMENTS), len(RATIO_EDGES) + 1, dtype=torch.float64, device=device)
        self.broken = torch.tensor(WHOLE, device=device)
        """Number of the first token with a loss or log-prob that is not finite, in the whole batch's order; WHOLE if
        there is none."""

    @torch.no_grad()
    def add(self, batch: MicroBatch, loss: Tensor, tokens: TokenLosses, values: TokenValues, sampled: Tensor) -> None:
        """sampled: log-probs under the policy that sampled, of the same tokens as `tokens` and `values`."""
        drift = values.logprobs - sampled
        ratio = drift.exp()
        extremes = torch.stack([ratio, drift.abs()], 1).double()
        figures = torch.stack(
            [
                torch.ones_like(ratio),
                tokens.kl,
                values.entropy,
                kl_estimate(sampled, values.logprobs, "k3"),  # sampled by the first: KL(sampling || learner)
                ratio,
                tokens.clipped,
                drift.abs(),
            ]
        ).double()
        bins = torch.bucketize(drift, self.edges)
        whole = torch.isfinite(tokens.loss + drift)
        self.broken = torch.cat([batch.token.masked_fill(whole, WHOLE), self.broken[None]]).amin()
        plans = len(batch.semantic_ids)
        for segment, part in enumerate((slice(0, plans), slice(plans, None))):
            self.sums[segment] += figures[:, part].sum(1)
            self.peaks[segment] = torch.cat([extremes[part], self.peaks[segment, None]]).amax(0)
            self.bins[segment] += torch.bincount(bins[part], minlength=self.bins.shape[1])
        self.places += torch.tensor([batch.inputs, batch.text_ids.numel()], device=self.places.device)
        self.loss += loss

    def metrics(self) -> dict[str, float | list[int]]:
        """Of the whole batch: sums over ranks, then means over the tokens of a segment.

        loss; kl and segment_kl/<segment> (to the reference); entropy/<segment>; clip_fraction/<segment>;
        mismatch/<segment>_{kl, ratio_mean, ratio_max, abs_mean, max}: the learner's against the sampling policy's
        probabilities, the last two of |log ratio|: 0, 1, 1, 0, 0 where an exactly on-policy batch meets equal
        arithmetic; mismatch/<segment>_histogram: number of tokens by log ratio, in the bins between RATIO_EDGES;
        tokens; padding, the share of places that hold none and the only figure that depends on the cutting.
        """
        sums = torch.cat([self.sums.flatten(), self.places, self.loss[None], self.bins.flatten()])
        dist.all_reduce(sums)
        dist.all_reduce(self.peaks, dist.ReduceOp.MAX)
        *flat, used, padded, loss = sums[: -self.bins.numel()].tolist()
        histograms = sums[-self.bins.numel() :].long().view_as(self.bins).tolist()
        rows = [dict(zip(SUMS, flat[i : i + len(SUMS)], strict=True)) for i in (0, len(SUMS))]
        tokens = sum(row["tokens"] for row in rows)
        metrics = {
            "loss": loss,
            "kl": sum(row["kl"] for row in rows) / tokens,
            "tokens": tokens,
            "padding": 1 - used / padded,
        }
        peaks = self.peaks.tolist()
        for segment, row, (ratio_max, drift_max), histogram in zip(SEGMENTS, rows, peaks, histograms, strict=True):
            count = max(row["tokens"], 1.0)  # a batch without plans has none
            metrics[f"segment_kl/{segment}"] = row["kl"] / count
            metrics[f"entropy/{segment}"] = row["entropy"] / count
            metrics[f"clip_fraction/{segment}"] = row["clipped"] / count
            metrics[f"mismatch/{segment}_kl"] = row["mismatch"] / count
            metrics[f"mismatch/{segment}_ratio_mean"] = row["ratio"] / count
            metrics[f"mismatch/{segment}_ratio_max"] = ratio_max
            metrics[f"mismatch/{segment}_abs_mean"] = row["drift"] / count
            metrics[f"mismatch/{segment}_max"] = drift_max
            metrics[f"mismatch/{segment}_histogram"] = histogram
        return metrics
