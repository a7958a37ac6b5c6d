"""One layer of the residual stream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.attention import Alignment, Attention, Mask
from onmt_llm.nn.cache import KVCache
from onmt_llm.nn.feed_forward import FeedForward
from onmt_llm.nn.norms import build_norm


class Block(nn.Module):
    """Self-attention, optional cross attention, feed-forward; pre- or post-norm; in sequence or in parallel.

    Args:
        config: The model.
        layer: Index of the block in its stack.
        cross: Has attention to an encoder's memory.
        dropout: Of each sub-layer's output, and inside the feed-forward layer.
        attention_dropout: Of the attention weights.
    """

    def __init__(
        self, config: ModelConfig, *, layer: int, cross: bool, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.pre_norm = config.norm_position == "pre"
        self.parallel = config.parallel_residual
        self.attn_norm = build_norm(config)
        self.self_attn = Attention(config, layer=layer, dropout=attention_dropout)
        self.cross_norm = build_norm(config) if cross else None
        self.cross_attn = Attention(config, layer=layer, cross=True, dropout=attention_dropout) if cross else None
        self.mlp_norm = None if config.shared_norm else build_norm(config)
        self.mlp = FeedForward(config, dropout=dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Mask,
        *,
        rotary: Tensor | None = None,
        relative_TS: Tensor | None = None,
        memory_BSD: Tensor | None = None,
        memory_mask: Mask | None = None,
        cache: KVCache | None = None,
        align: Alignment | None = None,
    ) -> Tensor:
        if self.parallel:
            return self._parallel(x_BTD, mask, rotary, relative_TS, cache)
        memory_mask = memory_mask or Mask()
        if align is not None and align.mask is not None:
            # a second reading of the target, whose output nobody uses
            wide_BTD = self._attend_self(x_BTD, align.mask, rotary, relative_TS, None)
            self._attend_memory(wide_BTD, memory_mask, memory_BSD, cache, align)
            align = None
        x_BTD = self._attend_self(x_BTD, mask, rotary, relative_TS, cache)
        if self.cross_attn is not None:
            x_BTD = self._attend_memory(x_BTD, memory_mask, memory_BSD, cache, align)
        assert self.mlp_norm is not None, "shared_norm goes with parallel_residual"
        return self._after(self.mlp_norm, x_BTD, self.mlp(self._before(self.mlp_norm, x_BTD)))

    def _attend_self(
        self, x_BTD: Tensor, mask: Mask, rotary: Tensor | None, relative_TS: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        h_BTD = self._before(self.attn_norm, x_BTD)
        attn_BTD = self.self_attn(h_BTD, mask, rotary=rotary, relative_TS=relative_TS, cache=cache)
        return self._after(self.attn_norm, x_BTD, attn_BTD)

    def _attend_memory(
        self, x_BTD: Tensor, mask: Mask, memory_BSD: Tensor | None, cache: KVCache | None, align: Alignment | None
    ) -> Tensor:
        assert self.cross_attn is not None and self.cross_norm is not None
        h_BTD = self._before(self.cross_norm, x_BTD)
        attn_BTD = self.cross_attn(h_BTD, mask, memory_BSD=memory_BSD, cache=cache, align=align)
        return self._after(self.cross_norm, x_BTD, attn_BTD)

    def _before(self, norm: nn.Module, x_BTD: Tensor) -> Tensor:
        return norm(x_BTD) if self.pre_norm else x_BTD

    def _after(self, norm: nn.Module, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + F.dropout(out_BTD, self.dropout, self.training)
        return x_BTD if self.pre_norm else norm(x_BTD)

    def _parallel(
        self, x_BTD: Tensor, mask: Mask, rotary: Tensor | None, relative_TS: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        h_BTD = self.attn_norm(x_BTD)
        attn_BTD = self.self_attn(h_BTD, mask, rotary=rotary, relative_TS=relative_TS, cache=cache)
        mlp_BTD = self.mlp(h_BTD if self.mlp_norm is None else self.mlp_norm(x_BTD))
        x_BTD = x_BTD + F.dropout(attn_BTD, self.dropout, self.training)
        return x_BTD + F.dropout(mlp_BTD, self.dropout, self.training)
