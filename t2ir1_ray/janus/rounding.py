"""Where the language model rounds in bfloat16: at the same places in whoever samples and in whoever learns.

transformers rounds inside of a norm and three times inside of the rotary embedding, engines do not, and each of their
kernels has an order of its own. The same weights are then policies whose log-probs differ by several times what
matrix products and attention have to differ by (tests/benchmarks/mismatch.py). In float32 all this does not matter, and
everybody keeps their own code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm


def normed(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of (..., H), rounded once; on a GPU one kernel."""
    return F.rms_norm(hidden, weight.shape, weight, eps)


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (..., D), rounded once. cos, sin: (..., D / 2)."""
    first, second = heads.float().chunk(2, -1)
    cos, sin = cos.float(), sin.float()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(heads.dtype)


class _Norm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return normed(hidden_states, self.weight, self.variance_epsilon)


class _Attention(LlamaAttention):
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        layers = self.q_proj, self.k_proj, self.v_proj
        query, key, value = (layer(hidden_states).view(shape).transpose(1, 2) for layer in layers)
        cos, sin = (both.chunk(2, -1)[0].unsqueeze(1) for both in position_embeddings)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        mixed, _ = sdpa_attention_forward(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **options
        )
        return self.o_proj(mixed.reshape(*shape[:-2], -1)), None


def round_as_engines(model: nn.Module) -> None:
    """Let a Janus model of transformers round as `actors.vllm_model.JanusTrunk` does."""
    own = {LlamaRMSNorm: _Norm, LlamaAttention: _Attention}
    for module in model.model.language_model.modules():
        module.__class__ = own.get(type(module), type(module))
