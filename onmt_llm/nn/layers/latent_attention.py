"""Multi-head latent attention (DeepSeek-AI 2024): the keys and values of all heads come from one narrow vector.

A head's queries and keys are a rotated part (R of their H dimensions) and one without positions. The rotated part of
the keys is the same for all heads. The cache holds whole keys and values.

Shapes as in `attention.py`; V is the width of a head's values, X any width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.attention import attend
from onmt_llm.nn.layers.position_wise import RMSNorm
from onmt_llm.nn.masks import Mask
from onmt_llm.nn.positions import rotate

_EPS = 1e-6
"""Of the norms of the narrow vectors, whatever `norm_eps` is."""


class LatentAttention(nn.Module):
    """Self-attention with narrow vectors between the input and its queries (optional), keys and values.

    Args:
        config: The model.
        layer: Index of this layer in the KV cache.
        dropout: Of the attention weights.

    Attributes:
        cross: It never attends to an encoder's output.
    """

    cross = False

    def __init__(self, config: ModelConfig, *, layer: int, dropout: float = 0.0) -> None:
        super().__init__()
        latent, width, heads = config.latent, config.hidden_size, config.heads
        self.layer, self.dropout, self.heads = layer, dropout, heads
        self.scale, self.softcap = config.attention_factor, config.attention_softcap
        self.rotary_size, self.value_size = config.rotary_size, config.value_size
        self.rest_size = config.size_per_head - config.rotary_size
        queries = heads * config.size_per_head
        self.q_proj = None if latent.q_rank else nn.Linear(width, queries, bias=False)
        self.q_a_proj = nn.Linear(width, latent.q_rank, bias=config.attn_bias) if latent.q_rank else None
        self.q_a_norm = RMSNorm(latent.q_rank, eps=_EPS) if latent.q_rank else None
        self.q_b_proj = nn.Linear(latent.q_rank, queries, bias=False) if latent.q_rank else None
        self.kv_a_proj = nn.Linear(width, self.rotary_size + latent.kv_rank, bias=config.attn_bias)
        self.kv_a_norm = RMSNorm(latent.kv_rank, eps=_EPS)
        self.kv_b_proj = nn.Linear(latent.kv_rank, heads * (self.rest_size + self.value_size), bias=False)
        self.o_proj = nn.Linear(heads * self.value_size, width, bias=config.attn_out_bias)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Mask,
        *,
        rotary: Tensor,
        relative_TS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """As `Attention.forward` of a self-attention with rotary positions, without an alignment."""
        q_BNTH = rotate(self._queries(x_BTD), rotary).transpose(1, 2)
        k_BNTH, v_BNTV = self._keys_and_values(x_BTD, rotary)
        if cache is not None:
            k_BNTH, v_BNTV = cache.append(self.layer, k_BNTH, v_BNTV)
        dropout = self.dropout if self.training else 0.0
        if x_BTD.shape[1] > 1:
            # Fused kernels need values as wide as keys.
            v_BNTV = F.pad(v_BNTV, (0, k_BNTH.shape[-1] - self.value_size))
        out_BNTX = attend(q_BNTH, k_BNTH, v_BNTV, mask, self.scale, dropout, self.softcap)
        return self.o_proj(out_BNTX[..., : self.value_size].transpose(1, 2).flatten(-2))

    def _queries(self, x_BTD: Tensor) -> Tensor:
        if self.q_proj is not None:
            q_BTX = self.q_proj(x_BTD)
        else:
            assert self.q_a_proj is not None and self.q_a_norm is not None and self.q_b_proj is not None
            q_BTX = self.q_b_proj(self.q_a_norm(self.q_a_proj(x_BTD)))
        return q_BTX.unflatten(-1, (self.heads, -1))

    def _keys_and_values(self, x_BTD: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        k_BTR, latent_BTX = self.kv_a_proj(x_BTD).tensor_split([self.rotary_size], dim=-1)
        k_BTNR = rotate(k_BTR.unsqueeze(2), rotary).expand(-1, -1, self.heads, -1)
        kv_BTNX = self.kv_b_proj(self.kv_a_norm(latent_BTX)).unflatten(-1, (self.heads, -1))
        rest_BTNX, v_BTNV = kv_BTNX.tensor_split([self.rest_size], dim=-1)
        return torch.cat([k_BTNR, rest_BTNX], dim=-1).transpose(1, 2), v_BTNV.transpose(1, 2)
