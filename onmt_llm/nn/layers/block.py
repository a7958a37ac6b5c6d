"""One layer of the residual stream."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.activations.recompute import recompute
from onmt_llm.nn.cpu.dropout import add_dropped
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.attention import Alignment, Attention, Mask
from onmt_llm.nn.layers.feed_forward import FeedForward
from onmt_llm.nn.layers.norms import build_norm


class Block(nn.Module):
    """Self-attention, optional cross attention, feed-forward; pre- or post-norm; in sequence or in parallel.

    Args:
        config: The model.
        layer: Index of the block in its stack.
        cross: Has attention to an encoder's memory.
        dropout: Of each sub-layer's output, and inside the feed-forward layer.
        attention_dropout: Of the attention weights.

    Attributes:
        recomputed: Parts that are computed again in the backward pass (`recompute.py`).
    """

    recomputed: Collection[str] = ()

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
        mlp_BTD = self._sublayer("ffn", self._before(self.mlp_norm), self.mlp, x_BTD)
        return self._after(self.mlp_norm, x_BTD, mlp_BTD)

    def _attend_self(
        self, x_BTD: Tensor, mask: Mask, rotary: Tensor | None, relative_TS: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        context = {"rotary": rotary, "relative_TS": relative_TS, "cache": cache}
        attn_BTD = self._sublayer("mha", self._before(self.attn_norm), self.self_attn, x_BTD, mask, **context)
        return self._after(self.attn_norm, x_BTD, attn_BTD)

    def _attend_memory(
        self, x_BTD: Tensor, mask: Mask, memory_BSD: Tensor | None, cache: KVCache | None, align: Alignment | None
    ) -> Tensor:
        assert self.cross_attn is not None and self.cross_norm is not None
        context = {"memory_BSD": memory_BSD, "cache": cache, "align": align}
        attn_BTD = self._sublayer("mha", self._before(self.cross_norm), self.cross_attn, x_BTD, mask, **context)
        return self._after(self.cross_norm, x_BTD, attn_BTD)

    def _sublayer(
        self, part: str, norm: nn.Module | None, layer: nn.Module, x_BTD: Tensor, *inputs: Any, **context: Any
    ) -> Tensor:
        """layer(norm(x)), computed again in the backward pass if `part` is and nothing else is filled in by it."""

        def compute(x_BTD: Tensor) -> Tensor:
            return layer(x_BTD if norm is None else norm(x_BTD), *inputs, **context)

        filled = context.get("cache") is not None or context.get("align") is not None
        if part in self.recomputed and torch.is_grad_enabled() and not filled:
            return recompute(layer, compute, x_BTD)
        return compute(x_BTD)

    def _before(self, norm: nn.Module) -> nn.Module | None:
        return norm if self.pre_norm else None

    def _after(self, norm: nn.Module, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
        x_BTD = add_dropped(x_BTD, out_BTD, self.dropout, self.training)
        return x_BTD if self.pre_norm else norm(x_BTD)

    def _parallel(
        self, x_BTD: Tensor, mask: Mask, rotary: Tensor | None, relative_TS: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        context = {"rotary": rotary, "relative_TS": relative_TS, "cache": cache}
        if self.mlp_norm is None:
            h_BTD = self.attn_norm(x_BTD)
            attn_BTD = self._sublayer("mha", None, self.self_attn, h_BTD, mask, **context)
            mlp_BTD = self._sublayer("ffn", None, self.mlp, h_BTD)
        else:
            attn_BTD = self._sublayer("mha", self.attn_norm, self.self_attn, x_BTD, mask, **context)
            mlp_BTD = self._sublayer("ffn", self.mlp_norm, self.mlp, x_BTD)
        x_BTD = add_dropped(x_BTD, attn_BTD, self.dropout, self.training)
        return add_dropped(x_BTD, mlp_BTD, self.dropout, self.training)
