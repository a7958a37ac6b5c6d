"""Self-attention with one projection for queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onmt_llm.nn.inference.packed import joined
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.attention import (
    Attention,
    RelativeVectors,
    attend,
    attend_relative,
    attend_with_sinks,
    relative_bias,
)
from onmt_llm.nn.masks import Mask
from onmt_llm.nn.positions import rotate


class FusedAttention(nn.Module):
    """A self-attention whose q_proj, k_proj and v_proj are one layer, for inference.

    Queries and keys are rotated together.

    Args:
        attention: The self-attention that it replaces; its q_proj, k_proj and v_proj lose their weights.

    Attributes:
        layer: Index of this layer in the KV cache.
        cross: It never attends to an encoder's output.
    """

    cross = False

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.layer, self.head_size = attention.layer, attention.head_size
        self.scale, self.softcap = attention.scale, attention.softcap
        self.q_norm, self.k_norm, self.norm_heads = attention.q_norm, attention.k_norm, attention.norm_heads
        self.sinks, self.relative_bias = attention.sinks, attention.relative_bias
        self.embed_relative = attention.embed_relative
        self.heads = attention.q_proj.out_features // self.head_size
        self.kv_heads = attention.k_proj.out_features // self.head_size
        self.qkv_proj = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o_proj = attention.o_proj

    def forward(
        self,
        x_BTD: Tensor,
        mask: Mask,
        *,
        rotary: Tensor | None = None,
        relative_TS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """As `Attention.forward` of a self-attention."""
        batch, length, _ = x_BTD.shape
        qkv_BTXH = self.qkv_proj(x_BTD).view(batch, length, -1, self.head_size)
        qk_BTXH, v_BTKH = qkv_BTXH.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.q_norm is not None:
            qk_BTXH = self._normalised(qk_BTXH)
        if rotary is not None:
            qk_BTXH = rotate(qk_BTXH, rotary)
        q_BTNH, k_BTKH = qk_BTXH.split((self.heads, self.kv_heads), dim=2)
        q_BNTH, k_BKSH, v_BKSH = q_BTNH.transpose(1, 2), k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2)
        if cache is not None:
            k_BKSH, v_BKSH = cache.append(self.layer, k_BKSH, v_BKSH)
        out_BNTH = self._attend(q_BNTH, k_BKSH, v_BKSH, mask, relative_TS)
        return self.o_proj(out_BNTH.transpose(1, 2).reshape(batch, length, -1))

    def _normalised(self, qk_BTXH: Tensor) -> Tensor:
        assert self.q_norm is not None and self.k_norm is not None
        q_BTNH, k_BTKH = qk_BTXH.split((self.heads, self.kv_heads), dim=2)
        if self.norm_heads:
            return torch.cat((self.q_norm(q_BTNH), self.k_norm(k_BTKH)), dim=2)
        both_BTX = torch.cat((self.q_norm(q_BTNH.flatten(2)), self.k_norm(k_BTKH.flatten(2))), dim=-1)
        return both_BTX.view(qk_BTXH.shape)

    def _attend(self, q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, relative_TS: Tensor | None) -> Tensor:
        if self.relative_bias is not None:
            assert relative_TS is not None
            mask = mask.plus(relative_bias(self.relative_bias, relative_TS))
        if self.embed_relative is not None:
            assert relative_TS is not None
            relative = RelativeVectors(self.embed_relative.weight, relative_TS)
            return attend_relative(q_BNTH, k_BKSH, v_BKSH, mask, relative, self.scale)
        if self.sinks is not None:
            return attend_with_sinks(q_BNTH, k_BKSH, v_BKSH, mask, self.sinks, self.scale)
        return attend(q_BNTH, k_BKSH, v_BKSH, mask, self.scale, softcap=self.softcap)
