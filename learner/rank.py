"""LearnerRank: one data-parallel rank of the policy under DeepSpeed ZeRO.

The averaging of the loss is in the batch's token weights, so micro-batches and ranks only add up. Every rank runs the
same number of micro-batches through the same modules (see `packing`): one with less to do runs idle ones.
"""

import logging
import math
import os
import socket
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.bicot_grpo import token_losses
from learner.logprobs import TokenValues, sequence_logprobs
from learner.meter import StepMeter
from learner.packing import MicroBatch, idle_batch, in_token_order, micro_batches
from t2ir1_ray.config import LearnerConfig, PolicyConfig
from t2ir1_ray.errors import RunError
from t2ir1_ray.policy import freeze, load_model, save_policy
from t2ir1_ray.schema import LearnerBatch

CHECKPOINT = "learner"
"""Subfolder of DeepSpeed's own files inside a checkpoint folder."""


class _Policy(nn.Module):
    """Janus with log-probs as its forward pass, so that ZeRO-3's hooks see every parameter's use."""

    def __init__(self, janus: nn.Module, temperature: float):
        super().__init__()
        self.janus = janus
        self.temperature = temperature

    def forward(self, batch: MicroBatch) -> TokenValues:
        return sequence_logprobs(self.janus, batch, self.temperature)


class _Tokens(NamedTuple):
    """What the loss needs of each token: (K,) float32 in the order of `packing`."""

    advantages: Tensor
    weights: Tensor
    sampled: Tensor  # log-probs under the sampling policy
    reference: Tensor  # log-probs under the reference

    @classmethod
    def of(cls, data: LearnerBatch, device: torch.device) -> Self:
        lengths, width = [len(ids) for ids in data.semantic_ids], data.image_ids.shape[1]

        def spread(semantic: np.ndarray, image: np.ndarray) -> np.ndarray:  # two values per sample
            return np.concatenate([np.repeat(semantic, lengths), np.repeat(image, width)])

        columns = (
            spread(data.advantage, data.advantage),
            spread(data.semantic_token_weight, data.image_token_weight),
            in_token_order(data.semantic_logprobs, data.image_logprobs),
            in_token_order(data.semantic_ref_logprobs, data.image_ref_logprobs),
        )
        return cls(*(torch.from_numpy(column).to(device) for column in columns))

    def at(self, token: Tensor) -> Self:
        return type(self)(*(column[token] for column in self))


class LearnerRank:
    """One of `world_size` processes that train together. All ranks must call every method but `address` together."""

    def __init__(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        rank: int,
        world_size: int,
        temperature: float = 1.0,
    ):
        """temperature: of sampling; log-probs are those of the distribution that was sampled from."""
        self.policy, self.config = policy, config
        self.rank, self.world_size = rank, world_size
        self.temperature = temperature

    def address(self) -> tuple[str, int]:
        """Host and a free port of this rank's node, where the ranks can meet."""
        host = socket.gethostbyname(socket.gethostname()) if self.world_size > 1 else "127.0.0.1"
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def connect(self, host: str, port: int, timeout_s: float = 600.0) -> None:
        """Meet the other ranks, load the policy and build optimizer and schedule.

        timeout_s: after which a collective operation whose partner is missing fails.
        """
        cuda = torch.cuda.is_available()
        os.environ.update(
            RANK=str(self.rank),
            LOCAL_RANK="0",  # Ray shows each actor its own GPU only
            WORLD_SIZE=str(self.world_size),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        if not cuda:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # here, not above: it reads DS_ACCELERATOR, and importing it takes seconds

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's calls, once per gather
        if not cuda:  # else a cold start compiles it for a minute and a half
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False)
        model, parameters = self._model("cuda" if cuda else "cpu")
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.config.learning_rate,
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
        )
        warmup = self.config.warmup_steps  # the first step already moves: (1, 2, ...) / (warmup + 1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        self.engine, *_ = deepspeed.initialize(
            model=_Policy(model, self.temperature),
            model_parameters=parameters,
            optimizer=optimizer,
            lr_scheduler=schedule,
            config=self._deepspeed_config(),
        )

    def step(self, batch: pa.RecordBatch, on_policy: bool = True) -> dict[str, float]:
        """One update on this rank's samples (`LearnerBatch`, possibly none); returns metrics of the whole batch.

        `on_policy=False`: the ratio is taken against the stored sampling log-probs, and clipped. The metrics are those
        of `StepMeter`, and grad_norm (before clipping) and lr. Raises RunError if the loss or gradient is not finite.
        """
        data = LearnerBatch.from_arrow(batch)
        device = self.engine.device
        tokens = _Tokens.of(data, device)
        work = self._work(data)
        meter = StepMeter(device)
        lr = float(self.engine.get_lr()[0])
        for index, micro_batch in enumerate(work):
            micro_batch = micro_batch.to(device)
            own = tokens.at(micro_batch.token)
            values: TokenValues = self.engine(micro_batch)
            losses = token_losses(
                values.logprobs,
                own.reference,
                own.advantages,
                self.config.beta,
                None if on_policy else own.sampled,
                self.config.clip_low,
                self.config.clip_high,
                self.config.kl,
            )
            loss = (own.weights * losses.loss).sum()
            self.engine.set_gradient_accumulation_boundary(index == len(work) - 1)
            # DeepSpeed averages gradients over ranks; the weights already hold the mean over the whole batch.
            self.engine.backward(loss * self.world_size)
            self.engine.step()
            meter.add(micro_batch, loss, losses, values, own.sampled)
        metrics = meter.metrics() | {"grad_norm": float(self.engine.get_global_grad_norm()), "lr": lr}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            raise RunError(f"learner: loss={metrics['loss']} grad_norm={metrics['grad_norm']}: not finite")
        return metrics

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
                state[name] = tensor.to("cpu", copy=True)
        return state if self.rank == 0 else None

    def export(self, folder: Path) -> None:
        """Write a checkpoint that plain transformers loads (rank 0 writes); it is complete when the call returns."""
        state = self.trainable_state()
        if state is not None:
            save_policy(self.policy.path, state, folder)
        dist.barrier()

    def save(self, folder: Path) -> None:
        """Write parameters, optimizer and schedule of all ranks, for `load` with the same ranks and ZeRO stage.

        Not atomic: write into a folder of its own and rename that when the call has returned on every rank.
        """
        self.engine.save_checkpoint(str(folder), CHECKPOINT, save_latest=False, exclude_frozen_parameters=True)
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Go on exactly where `save` was called. DeepSpeed unpickles: only folders that this run wrote."""
        self.engine.load_checkpoint(str(folder), CHECKPOINT, load_module_strict=False)

    def _model(self, device: str) -> tuple[nn.Module, list[nn.Parameter]]:
        """The policy, ready to train, and its trainable parameters."""
        model = load_model(self.policy.path, self.config.dtype, device)
        for unused in ("vision_model", "aligner", "vqmodel"):  # they play no part in log-probs: 1 GB of Janus-Pro-7B
            delattr(model.model, unused)
        if self.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train(), list(freeze(model).values())  # Janus has no dropout: train() only switches checkpointing

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        named = self.engine.module.janus.named_parameters()
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]

    def _work(self, data: LearnerBatch) -> list[MicroBatch]:
        """This rank's micro-batches, followed by idle ones up to the number of the busiest rank."""
        work = micro_batches(
            data.semantic_prompt_ids,
            data.semantic_ids,
            data.image_prompt_ids,
            data.image_ids,
            self.config.tokens_per_batch,
        )
        most = torch.tensor(len(work), device=self.engine.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        if not most.item():
            raise ValueError("LearnerRank.step: no rank has a sample")
        return work + [idle_batch()] * (int(most) - len(work))

    def _deepspeed_config(self) -> dict[str, Any]:
        bf16 = self.config.dtype == "bfloat16"
        return {
            "train_micro_batch_size_per_gpu": 1,  # nominal: micro-batches are cut by tokens
            "gradient_accumulation_steps": 1,  # likewise: boundaries are set by hand
            "gradient_clipping": self.config.max_grad_norm,
            "steps_per_print": 10**9,
            "bf16": {"enabled": bf16},
            "data_types": {"grad_accum_dtype": "fp32"},  # dozens of micro-batches do not add up in bfloat16
            "zero_optimization": {"stage": self.config.zero_stage},
        }
