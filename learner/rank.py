"""LearnerRank: one data-parallel rank of the policy under DeepSpeed ZeRO.

The averaging of the loss is in the batch's token weights, so micro-batches and ranks only add up. Every rank runs the
same number of micro-batches through the same modules (see `packing`): one with less to do runs idle ones.
"""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from learner.bicot_grpo import token_losses
from learner.crediting import Tokens, credited, sample_of
from learner.entropy_control import EntropyControl
from learner.logprobs import TokenValues, sequence_logprobs
from learner.lora import add_lora, merged_layers, published_weights, save_adapter
from learner.meter import StepMeter
from learner.packing import MicroBatch, Sequences, idle_batch, micro_batches
from learner.schedules import ScheduledValue, schedule
from learner.universal import universal_checkpoint
from t2ir1_ray.config import LearnerConfig, PolicyConfig
from t2ir1_ray.errors import RunError, check_finite
from t2ir1_ray.janus.policy import PromptFormat, freeze, load_model, load_tokenizer, save_policy
from t2ir1_ray.records.schema import LearnerBatch

CHECKPOINT = "learner"
"""Subfolder of DeepSpeed's own files inside a checkpoint folder."""
RANK_IN_NAME = re.compile(r"zero_pp_rank_(\d+)_")
"""The rank in the names of DeepSpeed's files that are one rank's."""


class _Policy(nn.Module):
    """Janus with log-probs as its forward pass, so that ZeRO-3's hooks see every parameter's use."""

    def __init__(self, janus: nn.Module, temperature: float, guidance: float, config: LearnerConfig):
        super().__init__()
        self.janus = janus
        self.temperature, self.guidance = temperature, guidance
        self.asked = {"sloped": config.entropy_band is not None, "contrast": config.token_credit == "guidance"}

    def forward(self, batch: MicroBatch) -> TokenValues:
        return sequence_logprobs(self.janus, batch, self.temperature, guidance=self.guidance, **self.asked)


class LearnerRank:
    """One of `world_size` processes that train together. All ranks must call every method together."""

    def __init__(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        rank: int,
        world_size: int,
        temperature: float = 1.0,
        guidance: float = 1.0,
        steps: int = 1,
    ):
        """temperature: of sampling; log-probs are those of the distribution that was sampled from.

        guidance: w of the images' log-probs; 1 means those of the conditional distribution, whatever the images were
        sampled with. steps: of the whole run, over which the schedules go.
        """
        self.policy, self.config = policy, config
        self.rank, self.world_size = rank, world_size
        self.temperature, self.guidance = temperature, guidance
        self.steps = steps
        self.beta = ScheduledValue(config.beta, config.beta_schedule, steps)
        self.entropy = EntropyControl(config.entropy_band, config.entropy_weight) if config.entropy_band else None
        self.pad_id = PromptFormat(load_tokenizer(policy.path), policy).pad_id if guidance != 1.0 else None

    def join_ranks(self, host: str, port: int, timeout_s: float = 600.0) -> None:
        """Meet the other ranks, load the policy and build optimizer and schedule.

        timeout_s: after which a collective operation whose partner is missing fails. It must be longer than the disk
        takes for one rank's share of a checkpoint.
        """
        cuda = torch.cuda.is_available()
        os.environ.update(
            RANK=str(self.rank),
            LOCAL_RANK="0",  # Ray shows each actor its own GPU only
            WORLD_SIZE=str(self.world_size),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        if cuda:
            torch.backends.cuda.enable_cudnn_sdp(False)  # seconds for every new shape, see tests/gpu/learner.py
        else:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # here, not above: it reads DS_ACCELERATOR, and importing it takes seconds

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's calls, once per gather
        if not cuda:  # else a cold start compiles it for a minute and a half
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False)
        model, parameters = self._model("cuda" if cuda else "cpu")
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=self.config.learning_rate,
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
        )
        self.engine, *_ = deepspeed.initialize(
            model=_Policy(model, self.temperature, self.guidance, self.config),
            model_parameters=parameters,
            optimizer=self.optimizer,
            lr_scheduler=self._schedule(),
            config=self._deepspeed_config(sum(parameter.numel() for parameter in parameters)),
        )

    def step(self, batch: pa.RecordBatch, on_policy: bool = True) -> dict[str, Any]:
        """One update on this rank's samples (`LearnerBatch`, possibly none); returns metrics of the whole batch.

        `on_policy=False`: the ratio is taken against the stored sampling log-probs, and truncated or clipped.
        The metrics are those of `StepMeter`, grad_norm (before clipping), lr and beta, and with an entropy band those
        of `EntropyControl`; the loss has the entropy's term then. Raises RunError if one of them is not finite, with
        the first sample of every rank that has brought it about.
        """
        data = LearnerBatch.from_arrow(batch)
        device = self.engine.device
        tokens = Tokens.of(data, device)
        work = self._work(data)
        meter = StepMeter(device)
        lr, beta = float(self.engine.get_lr()[0]), self.beta.value
        for index, micro_batch in enumerate(work):
            micro_batch = micro_batch.to(device)
            own = tokens.at(micro_batch.token)
            values: TokenValues = self.engine(micro_batch)
            advantages, weights = credited(self.config.token_credit, micro_batch, values, own)
            losses = token_losses(
                values.logprobs,
                own.reference,
                advantages,
                beta,
                old_logprobs=None if on_policy else own.sampled,
                clip_low=self.config.clip_low,
                clip_high=self.config.clip_high,
                kl=self.config.kl,
                max_ratio=self._max_ratio(micro_batch),
            )
            loss = (weights * losses.loss).sum()
            if self.entropy:
                pull = _by_segment(micro_batch, *self.entropy.weights.values())
                loss = loss - (pull * own.weights * values.entropy).sum()
            self.engine.set_gradient_accumulation_boundary(index == len(work) - 1)
            # DeepSpeed averages gradients over ranks; the weights already hold the mean over the whole batch.
            self.engine.backward(loss * self.world_size)
            self.engine.step()
            meter.add(micro_batch, loss, losses, values, own.sampled)
        self.beta.step()
        metrics = meter.metrics()
        if self.entropy:
            metrics |= self.entropy.step(metrics)
        metrics |= {"grad_norm": float(self.engine.get_global_grad_norm()), "lr": lr, "beta": beta}
        finite = all(np.isfinite(figure).all() for figure in metrics.values())  # on all ranks, or on none
        check_finite(metrics, "update" if finite else f"update{self._blamed(data, int(meter.broken))}")
        return metrics

    def _blamed(self, data: LearnerBatch, token: int) -> str:
        """The first broken sample of every rank; all ranks ask together. token: of this rank's, see `StepMeter`."""
        found: list[list[str]] = [[]] * self.world_size
        dist.all_gather_object(found, sample_of(data, token))
        return f" ({', '.join(named)})" if (named := sum(found, [])) else ""

    def trainable_metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, full shape) of every parameter that training changes, in the order of `gather_trainable`."""
        sources = [(name, parameters[0]) for name, parameters, _ in self._changing()]
        return [(name, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in sources]

    def gather_trainable(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter of the policy that training changes in full, adapters merged, one at a time, on the rank's
        device; all ranks must walk through it."""
        for name, parameters, value in self._changing():
            with self._gathered(parameters):
                yield name, value()

    def trainable_state(self) -> dict[str, Tensor] | None:
        """The trained parameters under transformers' names on the CPU; None on ranks other than 0.

        Where they lie there already, they are not copied: they change with the next step.
        """
        state = {}
        for name, tensor in self.gather_trainable():
            if self.rank == 0:
                state[name] = tensor.cpu()
        return state if self.rank == 0 else None

    def export_policy(self, folder: Path) -> None:
        """Write a checkpoint that plain transformers loads; it is complete when the call returns on rank 0.

        With LoRA its adapters are merged, and stand alone in the subfolder `adapter`. The other ranks return when rank
        0 has everything in memory: nobody waits in a collective operation for a disk.
        """
        if self.config.lora_rank:
            janus = self.engine.module.janus
            with self._gathered([parameter for parameter in janus.parameters() if parameter.requires_grad]):
                if self.rank == 0:
                    save_adapter(janus, self.config, folder / "adapter")
        state = self.trainable_state()
        if state is not None:
            save_policy(self.policy.path, state, folder)

    def save_state(self, folder: Path) -> None:
        """Write parameters, optimizer, schedule and entropy control of all ranks, for `restore_state`.

        Not atomic: write into a folder of its own and rename that when the call has returned on every rank. Each rank
        writes its share at the same time as the others, and waits for the slowest.
        """
        self.engine.save_checkpoint(str(folder), CHECKPOINT, save_latest=False, exclude_frozen_parameters=True)
        if self.entropy and self.rank == 0:
            self.entropy.save(folder)
        dist.barrier()

    def written(self, folder: Path) -> dict[str, int]:
        """The files of a checkpoint that this rank has written: {path inside `folder`: bytes}.

        Those whose names speak of a rank are that rank's, all others those of rank 0. Raises RunError if none is.
        """
        files = {file: RANK_IN_NAME.search(file.name) for file in folder.rglob("*") if file.is_file()}
        own = [file for file, match in files.items() if int(match[1] if match else 0) == self.rank]
        if not own:
            raise RunError(f"learner {self.rank}: has written nothing to {folder}")
        return {str(file.relative_to(folder)): file.stat().st_size for file in own}

    def restore_state(self, folder: Path, ranks: int | None = None) -> None:
        """Go on where `save_state` was called on `ranks` ranks (None: as many as now).

        Parameters, moments and the number of steps come from there; rates and all other settings from the
        configuration, which may have changed. Exact on as many ranks; on others through DeepSpeed's universal
        checkpoint, equal but for rounding. DeepSpeed unpickles: only folders that this run wrote.
        """
        if ranks in (None, self.world_size):
            self._load(folder / CHECKPOINT)
        else:
            with universal_checkpoint(folder / CHECKPOINT, self.rank) as converted:
                self.engine._config.load_universal_checkpoint = True
                self._load(converted)
                self.engine._config.load_universal_checkpoint = False
        if self.entropy:
            self.entropy.restore(folder)
        self._configure_at(self.engine.global_steps)

    def _load(self, folder: Path) -> None:
        self.engine.load_checkpoint(
            str(folder.parent), folder.name, load_module_strict=False, load_lr_scheduler_states=False
        )

    def _configure_at(self, done: int) -> None:
        """Optimizer and schedules as the configuration says, `done` steps after the start. DeepSpeed's checkpoints
        hold settings beside the moments, which would silently win."""
        for group in self.optimizer.param_groups:
            group.pop("initial_lr")  # the base of a schedule: the new one takes it from `lr`
            group.update(
                lr=self.config.learning_rate, betas=tuple(self.config.betas), weight_decay=self.config.weight_decay
            )
        self.engine.optimizer.clip_grad = self.config.max_grad_norm
        self.engine.lr_scheduler = self._schedule()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of", UserWarning)  # the optimizer's steps lie behind
            for _ in range(done):
                self.engine.lr_scheduler.step()
                self.beta.step()

    def _schedule(self) -> LRScheduler:
        return schedule(self.optimizer, self.config.lr_schedule, self.config.warmup_steps, self.steps)

    def _model(self, device: str) -> tuple[nn.Module, list[nn.Parameter]]:
        """The policy, ready to train, and its trainable parameters."""
        model = load_model(self.policy.path, self.config.dtype, device)
        for unused in ("vision_model", "aligner", "vqmodel"):  # they play no part in log-probs: 1 GB of Janus-Pro-7B
            delattr(model.model, unused)
        if self.config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trainable = add_lora(model, self.config) if self.config.lora_rank else list(freeze(model).values())
        if self.config.zero_stage == 3:
            from deepspeed import zero

            for _, layer in merged_layers(model):  # which computes with parameters of its parts, never calling them
                for parameter in layer.parameters():
                    zero.register_external_parameter(layer, parameter)
        return model.train(), trainable  # Janus has no dropout: train() only switches checkpointing

    def _changing(self) -> list[tuple[str, list[nn.Parameter], Callable[[], Tensor]]]:
        """(name, what must be gathered for it, its value then) of every parameter of the policy that changes, and of
        those that engines keep in one weight with it."""
        janus = self.engine.module.janus
        if self.config.lora_rank:
            return [(weight.name, weight.parameters, weight.value) for weight in published_weights(janus)]
        return [(name, [p], p.detach) for name, p in janus.named_parameters() if p.requires_grad]

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        """The parameters in full on every rank, where ZeRO-3 has cut them."""
        from deepspeed import zero

        return zero.GatheredParameters(parameters, modifier_rank=None, enabled=self.config.zero_stage == 3)

    def _work(self, data: LearnerBatch) -> list[MicroBatch]:
        """This rank's micro-batches, followed by idle ones up to the number of the busiest rank."""
        work = micro_batches(Sequences.of(data), self.config.tokens_per_batch, self.pad_id)
        most = torch.tensor(len(work), device=self.engine.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        if not most.item():
            raise ValueError("LearnerRank.step: no rank has a sample")
        return work + [idle_batch()] * (int(most) - len(work))

    def _max_ratio(self, batch: MicroBatch) -> Tensor | None:
        """Where each token's importance weight is truncated.

        Weights are per token and not per segment: the product over 576 image tokens is 0 or infinity after any update.
        The bounds are apart because a token's share is: one of 60 plan tokens moves the gradient ten times as far as
        one of 576 image tokens, and plans drift faster.
        """
        if self.config.correction == "clip":
            return None
        return _by_segment(batch, self.config.semantic_max_ratio, self.config.image_max_ratio)

    def _deepspeed_config(self, trained: int) -> dict[str, Any]:
        """trained: number of trained parameters. A larger bucket than that is allocated all the same."""
        bf16 = self.config.dtype == "bfloat16"
        return {
            "train_micro_batch_size_per_gpu": 1,  # nominal: micro-batches are cut by tokens
            "gradient_accumulation_steps": 1,  # likewise: boundaries are set by hand
            "gradient_clipping": self.config.max_grad_norm,
            "steps_per_print": 10**9,
            "bf16": {"enabled": bf16},
            "communication_data_type": "fp32",  # gradients of several ranks do not add up in bfloat16 either
            "data_types": {"grad_accum_dtype": "fp32"},  # dozens of micro-batches do not add up in bfloat16
            "zero_optimization": {
                "stage": self.config.zero_stage,
                "reduce_bucket_size": min(trained, 500_000_000),
            },
        }


def _by_segment(batch: MicroBatch, semantic: float, image: float) -> Tensor:
    """(S + J,): one value for the plans' tokens, one for the images'."""
    counts = torch.tensor([len(batch.semantic_ids), len(batch.image_ids)])
    return torch.tensor([semantic, image]).repeat_interleave(counts).to(batch.token.device)
