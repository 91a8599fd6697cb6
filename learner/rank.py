"""LearnerRank: one data-parallel rank of the policy under DeepSpeed ZeRO.

The averaging of the loss is in the batch's token weights, so micro-batches and ranks only add up. Every rank runs the
same passes (ZeRO-3 gathers parameters together): a rank that has fewer repeats one with weight zero.
"""

import logging
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import get_scheduler

from learner.bicot_grpo import kl_estimate, token_losses
from learner.logprobs import TokenValues, sequence_logprobs
from learner.packing import Segment, segments
from t2ir1_ray.config import LearnerConfig, PolicyConfig
from t2ir1_ray.policy import freeze, load_model, save_policy
from t2ir1_ray.schema import LearnerBatch


class _Policy(nn.Module):
    """Janus with log-probs as its forward pass, so that ZeRO-3's hooks see every parameter's use."""

    def __init__(self, janus: nn.Module, temperature: float):
        super().__init__()
        self.janus = janus
        self.temperature = temperature

    def forward(self, segment: Segment) -> TokenValues:
        return sequence_logprobs(self.janus, segment, self.temperature)


class LearnerRank:
    """Call what ranks do together (`connect`, `step`, `trainable_state`, `gather_trainable`, `export`) on all ranks."""

    def __init__(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        rank: int,
        world_size: int,
        temperature: float = 1.0,
        total_steps: int = 1,
    ):
        """temperature: of sampling; log-probs are those of the distribution that was sampled from."""
        self.policy, self.config = policy, config
        self.rank, self.world_size = rank, world_size
        self.temperature, self.total_steps = temperature, total_steps

    def address(self) -> tuple[str, int]:
        """Host and a free port of this rank's node, where the ranks can meet."""
        host = socket.gethostbyname(socket.gethostname()) if self.world_size > 1 else "127.0.0.1"
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def connect(self, host: str, port: int, timeout_s: float = 600.0) -> None:
        """Meet the other ranks, load the policy and build optimizer and schedule."""
        cuda = torch.cuda.is_available()
        os.environ.update(
            RANK=str(self.rank),
            LOCAL_RANK="0",  # Ray shows each actor its own GPU only
            WORLD_SIZE=str(self.world_size),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        import deepspeed  # here, not above: it reads DS_ACCELERATOR, and importing it takes seconds

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if not cuda:  # else a cold start compiles it for a minute and a half
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False)
        torch.manual_seed(0)
        model = load_model(self.policy.path, self.config.dtype, "cuda" if cuda else "cpu")
        parameters = freeze(model)
        if self.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=self.config.learning_rate,
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
        )
        schedule = get_scheduler(
            "constant_with_warmup", optimizer, self.config.warmup_steps, num_training_steps=self.total_steps
        )
        self.engine, _, _, self.schedule = deepspeed.initialize(
            model=_Policy(model, self.temperature),
            model_parameters=list(parameters.values()),
            optimizer=optimizer,
            lr_scheduler=schedule,
            config=self._deepspeed_config(),
        )

    def step(self, batch: pa.RecordBatch, on_policy: bool = True) -> dict[str, float]:
        """One update on this rank's samples (`LearnerBatch`); returns metrics of the whole batch.

        `on_policy=False`: the ratio is taken against the stored sampling log-probs, and clipped.
        """
        data = LearnerBatch.from_arrow(batch)
        work = segments(
            data.semantic_prompt_ids,
            data.semantic_ids,
            data.image_prompt_ids,
            data.image_ids,
            self.config.tokens_per_batch,
        )
        sums: dict[str, float] = defaultdict(float)
        peaks: dict[str, float] = defaultdict(float)
        schedule = self._schedule(work)
        for index, (segment, counts) in enumerate(schedule):
            values = self.engine(segment)
            # DeepSpeed averages gradients over ranks; the weights already hold the mean over the whole batch.
            loss = self._loss(data, segment, values, on_policy, sums, peaks) * self.world_size if counts else None
            self.engine.set_gradient_accumulation_boundary(index == len(schedule) - 1)
            self.engine.backward(values.logprobs.sum() * 0.0 if loss is None else loss)
            self.engine.step()
        padded = sum(segment.padded_tokens for segment in work)
        sums |= {"padded": float(padded), "tokens": float(sum(segment.tokens for segment in work))}
        return self._metrics(self._reduce(sums), self._reduce(peaks, dist.ReduceOp.MAX))

    def trainable_metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, full shape) of every trained parameter, in the order of `gather_trainable`."""
        return [(name, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in self._trainable()]

    def gather_trainable(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter in full, one at a time, on the rank's device; all ranks must walk through it."""
        from deepspeed import zero

        for name, parameter in self._trainable():
            with zero.GatheredParameters([parameter], modifier_rank=None, enabled=self.config.zero_stage == 3):
                yield name, parameter.detach()

    def trainable_state(self) -> dict[str, Tensor] | None:
        """The trained parameters under transformers' names on the CPU; None on ranks other than 0."""
        state = {}
        for name, tensor in self.gather_trainable():
            if self.rank == 0:
                state[name] = tensor.cpu().clone()
        return state if self.rank == 0 else None

    def export(self, folder: Path) -> None:
        """Write a checkpoint that plain transformers loads (rank 0 writes)."""
        state = self.trainable_state()
        if state is not None:
            save_policy(self.policy.path, state, folder)

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        named = self.engine.module.janus.named_parameters()
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]

    def _schedule(self, work: list[Segment]) -> list[tuple[Segment, bool]]:
        """(segment, whether it counts) of every pass: plans, then images, as many of each on every rank.

        Under ZeRO-3 ranks gather parameters together, and plans and images use different heads.
        """
        plans = [segment for segment in work if not segment.image]
        images = [segment for segment in work if segment.image]
        most = self._reduce({"plans": float(len(plans)), "images": float(len(images))}, dist.ReduceOp.MAX)
        return [
            (mine[min(index, len(mine) - 1)], index < len(mine))
            for mine, passes in ((plans, most["plans"]), (images, most["images"]))
            for index in range(int(passes))
        ]

    def _loss(
        self,
        data: LearnerBatch,
        segment: Segment,
        values: TokenValues,
        on_policy: bool,
        sums: dict[str, float],
        peaks: dict[str, float],
    ) -> Tensor:
        """This micro-batch's share of the loss; adds its figures to `sums` and `peaks`."""
        kind = "image" if segment.image else "semantic"
        logprobs = values.logprobs
        lengths = [len(target) for target in segment.targets]

        def per_token(column: np.ndarray) -> Tensor:  # (N,) -> (T,)
            return torch.from_numpy(np.repeat(column[segment.rows], lengths)).to(logprobs.device)

        def flat(column: Any) -> Tensor:  # N rows of values -> (T,)
            return torch.from_numpy(np.concatenate([column[row] for row in segment.rows])).to(logprobs.device)

        sampled = flat(getattr(data, f"{kind}_logprobs"))
        weight = per_token(getattr(data, f"{kind}_token_weight"))
        losses, kl = token_losses(
            logprobs,
            flat(getattr(data, f"{kind}_ref_logprobs")),
            per_token(data.advantage),
            self.config.beta,
            None if on_policy else sampled,
            self.config.clip_low,
            self.config.clip_high,
            self.config.kl,
        )
        loss = (weight * losses).sum()
        with torch.no_grad():
            drift = logprobs - sampled
            ratio = drift.exp()
            outside = (ratio < 1 - self.config.clip_low) | (ratio > 1 + self.config.clip_high)
            sums["loss"] += loss.item()
            for name, value in {
                "tokens": torch.ones_like(kl),
                "kl": kl,
                "entropy": values.entropy,
                "mismatch": kl_estimate(sampled, logprobs, "k3"),
                "ratio": ratio,
                "clipped": outside.float(),
            }.items():
                sums[f"{kind}/{name}"] += value.sum().item()
            peaks[f"{kind}/drift"] = max(peaks[f"{kind}/drift"], drift.abs().max().item())
        return loss

    def _metrics(self, sums: dict[str, float], peaks: dict[str, float]) -> dict[str, float]:
        metrics = {
            "loss": sums["loss"],
            "kl": (sums["semantic/kl"] + sums["image/kl"]) / (sums["semantic/tokens"] + sums["image/tokens"]),
            "grad_norm": float(self.engine.get_global_grad_norm()),
            "learning_rate": float(self.engine.get_lr()[0]),
            "padding": 1 - sums["tokens"] / sums["padded"],
        }
        for kind in ("semantic", "image"):
            count = sums[f"{kind}/tokens"]
            metrics[f"kl/{kind}"] = sums[f"{kind}/kl"] / count
            metrics[f"entropy/{kind}"] = sums[f"{kind}/entropy"] / count
            metrics[f"ratio/{kind}"] = sums[f"{kind}/ratio"] / count
            metrics[f"clipped/{kind}"] = sums[f"{kind}/clipped"] / count
            metrics[f"mismatch/{kind}_kl"] = sums[f"{kind}/mismatch"] / count
            metrics[f"mismatch/{kind}_max"] = peaks[f"{kind}/drift"]
        return metrics

    def _reduce(self, values: dict[str, float], operation: Any = dist.ReduceOp.SUM) -> dict[str, float]:
        """The same keys, reduced over ranks."""
        keys = sorted(values)
        tensor = torch.tensor([values[key] for key in keys], dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(tensor, operation)
        return dict(zip(keys, tensor.tolist(), strict=True))

    def _deepspeed_config(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,  # nominal: micro-batches are cut by tokens
            "gradient_accumulation_steps": 1,  # likewise: boundaries are set by hand
            "gradient_clipping": self.config.max_grad_norm,
            "steps_per_print": 10**9,
            "bf16": {"enabled": self.config.dtype == "bfloat16"},
            "zero_optimization": {"stage": self.config.zero_stage},
            "zero_allow_untested_optimizer": True,
        }
