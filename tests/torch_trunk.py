"""What `actors.vllm_model.JanusTrunk` is inside vLLM, in plain PyTorch: the image decoder runs where vLLM does not.

Transformers' weights of Janus behind the interface of vLLM's modules: linear layers return a pair, norms add the
residual, rotary embedding takes flat rows. Fused weights are copies, everything else is shared with the Janus model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration

from t2ir1_ray.janus.rounding import normed, rotated


class TorchTrunk(nn.Module):
    """The parts of Janus that make tokens."""

    def __init__(self, janus: JanusForConditionalGeneration):
        super().__init__()
        self.model = _Language(janus.model.language_model)
        self.lm_head = janus.lm_head
        self.generation_embeddings = janus.model.generation_embeddings
        self.generation_aligner = janus.model.generation_aligner
        self.generation_head = janus.model.generation_head
        self.requires_grad_(False)


class _Language(nn.Module):
    def __init__(self, language: nn.Module):
        super().__init__()
        self.embed_tokens = language.embed_tokens
        rotary = _Rotary(language)
        self.layers = nn.ModuleList(_Layer(layer, rotary) for layer in language.layers)
        self.norm = _Norm(language.norm)


class _Layer(nn.Module):
    def __init__(self, layer: nn.Module, rotary: "_Rotary"):
        super().__init__()
        self.input_layernorm = _Norm(layer.input_layernorm)
        self.self_attn = _Attention(layer.self_attn, rotary)
        self.post_attention_layernorm = _Norm(layer.post_attention_layernorm)
        self.mlp = _Mlp(layer.mlp)


class _Attention(nn.Module):
    """The projections; attention itself belongs to the image decoder."""

    def __init__(self, attention: nn.Module, rotary: "_Rotary"):
        super().__init__()
        self.head_dim = attention.head_dim
        self.q_size = attention.q_proj.out_features
        self.kv_size = attention.k_proj.out_features
        self.qkv_proj = _Linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = _Linear(attention.o_proj)
        self.rotary_emb = rotary


class _Mlp(nn.Module):
    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.gate_up_proj = _Linear(mlp.gate_proj, mlp.up_proj)
        self.down_proj = _Linear(mlp.down_proj)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden)[0].chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)[0]


class _Linear(nn.Module):
    """One or several linear layers without bias as one, returning (output, None): vLLM may leave a bias to others."""

    def __init__(self, *layers: nn.Linear):
        super().__init__()
        self.weight = layers[0].weight
        if len(layers) > 1:
            self.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return F.linear(hidden, self.weight), None


class _Norm(nn.Module):
    """RMSNorm; with a residual (normalised sum, sum)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.variance_epsilon

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is not None:
            hidden = hidden + residual
        out = normed(hidden, self.weight, self.eps)
        return out if residual is None else (out, hidden)


class _Rotary(nn.Module):
    """Rotary position embedding of flat rows, from a table of all positions."""

    def __init__(self, language: nn.Module):
        super().__init__()
        frequencies = language.rotary_emb.inv_freq
        count = language.config.max_position_embeddings
        angles = torch.arange(count, device=frequencies.device).float()[:, None] * frequencies.float()
        self.head_dim = 2 * len(frequencies)
        self.cos, self.sin = (table.to(language.embed_tokens.weight.dtype) for table in (angles.cos(), angles.sin()))

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """positions: (T,); query, key: (T, heads * head_dim)."""
        cos, sin = self.cos[positions, None], self.sin[positions, None]
        return self._turned(query, cos, sin), self._turned(key, cos, sin)

    def _turned(self, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotated(rows.view(len(rows), -1, self.head_dim), cos, sin).flatten(1)
