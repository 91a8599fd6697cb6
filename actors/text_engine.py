"""The semantic-CoT: vLLM inside this process writes plans.

vLLM reads its switches from the environment when it is imported: set those of `engine_environment` first, in a Ray
actor through the runtime environment, in a script before the import of this module.
"""

import gc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import JanusConfig
from vllm import LLM, ModelRegistry, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed import cleanup_dist_env_and_memory

from actors.vllm_model import ARCHITECTURE, JanusTrunk, engine_folder
from actors.weights import Digest


class Plan(NamedTuple):
    """A sampled plan: ids up to and including the end token (if it came), and their log-probs when sampled.

    truncated: the engine stopped it for its length; a plan that ends at the limit by itself is whole.
    """

    ids: np.ndarray  # (L,) int32
    logprobs: np.ndarray  # (L,) float32
    truncated: bool


def engine_arguments(folder: str, dtype: str, length: int, max_sequences: int, kv_cache_gb: float) -> dict[str, Any]:
    """What vLLM is told. `folder` holds the engine's config.json; `length`: tokens of a prompt and its plan."""
    cpu = not torch.cuda.is_available()
    return {
        "model": folder,
        "load_format": "dummy",  # weights come by `take_weights`
        "dtype": dtype,
        "seed": 0,
        "max_model_len": length,
        "max_num_seqs": max_sequences,
        "max_num_batched_tokens": max(length, max_sequences, 2048),
        "kv_cache_memory_bytes": int(kv_cache_gb * 2**30),
        # Sizes nothing beside that, but this share of the GPU must be free when the engine starts: other roles may
        # have taken theirs. Whether all fit is the doctor's question.
        "gpu_memory_utilization": 0.05,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from, temperature included
        "enforce_eager": cpu,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        # A seeded request that is prefilled in chunks fails on the CPU.
        **({"block_size": 32, "enable_chunked_prefill": False} if cpu else {}),
    }


class TextEngine:
    """Plans for prompts, one independently seeded sequence each."""

    def __init__(
        self,
        config: JanusConfig,
        dtype: str,
        max_prompt: int,
        max_new: int,
        max_sequences: int,
        kv_cache_gb: float,
        nccl_transfer: bool = False,
    ):
        """`max_prompt`, `max_new`: tokens of a prompt and of a plan; `kv_cache_gb`: GiB taken for the KV cache;
        `nccl_transfer`: updates come over NCCL instead of `take_weights`."""
        ModelRegistry.register_model(ARCHITECTURE, JanusTrunk)
        with engine_folder(config) as folder:
            arguments = engine_arguments(str(folder), dtype, max_prompt + max_new, max_sequences, kv_cache_gb)
            transfer = WeightTransferConfig(backend="nccl") if nccl_transfer else None
            self._llm = LLM(**arguments, weight_transfer_config=transfer)
        self._max_new = max_new

    @property
    def trunk(self) -> JanusTrunk:
        """The module tree inside the engine. Modules keep their identity over `take_weights`, their tensors may not."""
        return self._llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()

    def take_weights(self, weights: Mapping[str, Tensor]) -> str:
        """Replace the given parameters (transformers' names of Janus); returns the digest of what the model took in.

        Raises RunError if the model does not hold it afterwards.
        """
        self._begin_update()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        return self._end_update()

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Enter the NCCL group of weight transfers (`nccl_transfer.py`)."""
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_update(self) -> None:
        self._begin_update()
        self._llm.start_weight_update()

    def receive_update(self, update_info: dict[str, Any]) -> None:
        self._llm.update_weights({"update_info": update_info})

    def finish_update(self) -> str:
        """End an update over NCCL; returns the digest of what the model took in."""
        self._llm.finish_weight_update()
        return self._end_update()

    def _begin_update(self) -> None:
        self.trunk.received = Digest()
        self.trunk.held.begin()

    def _end_update(self) -> str:
        self._forget_prefixes()
        self.trunk.held.check(self.trunk)
        return self.trunk.received.hexdigest()

    def _forget_prefixes(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: plans would come from old weights")

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], temperature: float, eos_id: int
    ) -> list[Plan]:
        """One plan per prompt, sampled over the full vocabulary; `temperature=0`: greedy.

        Cached prefixes of earlier calls are forgotten: which ones there were changes the last bit of the arithmetic.
        """
        self._forget_prefixes()
        params = [
            SamplingParams(
                temperature=temperature,
                seed=int(seed),
                max_tokens=self._max_new,
                stop_token_ids=[eos_id],
                logprobs=0,
                detokenize=False,
            )
            for seed in seeds
        ]
        requests = [{"prompt_token_ids": list(map(int, ids))} for ids in prompts]
        outputs = [request.outputs[0] for request in self._llm.generate(requests, params, use_tqdm=False)]
        return [
            Plan(
                np.asarray(output.token_ids, np.int32),
                np.asarray(
                    [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)],
                    np.float32,
                ),
                truncated=output.finish_reason == "length",
            )
            for output in outputs
        ]

    def close(self) -> None:
        """Free the engine, so that another can start in this process."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        cleanup_dist_env_and_memory()
