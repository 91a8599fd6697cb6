"""Janus' language model as vLLM sees it: a Llama, with the image modules riding along for the image decoder.

One set of weights serves both: vLLM decodes plans with the Llama, `image_decoder.ImageDecoder` borrows the same
modules for the image tokens.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.models.llama import LlamaForCausalLM

from actors.held import Held
from actors.weights import Digest
from t2ir1_ray.errors import RunError
from t2ir1_ray.janus.rounding import normed, rotated
from t2ir1_ray.storage import cache_folder, write_whole

ARCHITECTURE = "JanusTrunk"
_PREFIXES = {"model.language_model.": "model.", "lm_head.": "lm_head.", "model.generation_": "generation_"}


class _Norm(RMSNorm):
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        out = normed(total, self.weight, self.variance_epsilon)
        return out if residual is None else (out, total)


class _Rotary(RotaryEmbedding):
    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._match_cos_sin_cache_dtype(query)[positions.flatten(), None].chunk(2, -1)
        heads = (cos.shape[0], -1, self.head_size)
        return tuple(rotated(flat.view(heads), cos, sin).view_as(flat) for flat in (query, key))


class _Activation(SiluAndMul):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


_ROUNDING = {RMSNorm: _Norm, RotaryEmbedding: _Rotary, SiluAndMul: _Activation}
"""vLLM's layers, and the same with the learner's roundings (`janus.rounding`), for bfloat16."""


class JanusTrunk(LlamaForCausalLM):
    """The parts of Janus that make tokens; vision tower and VQ model are left out."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        vq = JanusVQVAEConfig(**vllm_config.model_config.hf_config.vq_config)
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(vq)
        self.generation_head = JanusVQVAEHead(vq)
        self.device = vllm_config.device_config.device
        self.received = Digest()
        """Of what the latest update brought, under transformers' names."""
        self.held = Held()
        if vllm_config.model_config.dtype != torch.float32:
            for module in self.model.modules():
                module.__class__ = _ROUNDING.get(type(module), type(module))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Accepts transformers' names of the whole Janus model and keeps what it has modules for."""
        return super().load_weights(self._renamed(weights))

    def _renamed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            tensor = tensor.to(self.device)  # there the digest costs nothing, and the copy is wanted anyway
            self.received.add(name, tensor)
            for old, new in _PREFIXES.items():
                if name.startswith(old):
                    own = new + name.removeprefix(old)
                    self.held.note(own, tensor)
                    yield own, tensor


@contextmanager
def engine_folder(config: JanusConfig) -> Iterator[Path]:
    """A folder with the `config.json` from which vLLM builds a JanusTrunk; weights are pushed afterwards.

    It is named by its content and stays in the user's cache: vLLM finds compiled code again by the model's path, and
    would compile at every start for one that is new. Where the cache cannot be written it is a temporary one.
    """
    text = config.text_config.to_dict()
    text.update(architectures=[ARCHITECTURE], vq_config=config.vq_config.to_dict(), tie_word_embeddings=False)
    content = json.dumps(text, sort_keys=True)
    folder = cache_folder() / "engine" / hashlib.sha256(content.encode()).hexdigest()[:32]
    with ExitStack() as stack:
        try:
            write_whole(folder / "config.json", content)
        except RunError:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_whole(folder / "config.json", content)
        yield folder
