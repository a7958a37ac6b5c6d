"""One layer of the residual stream: attention and feed-forward, with norms and residual connections."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.activations.recompute import recompute
from onmt_llm.nn.cpu.dropout import dropout_add
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.attention import Alignment, Attention
from onmt_llm.nn.layers.experts import Experts
from onmt_llm.nn.layers.position_wise import FeedForward, build_norm
from onmt_llm.nn.masks import Mask


@dataclass(frozen=True)
class BlockContext:
    """Inputs that all blocks of a stack share.

    Attributes:
        mask: Of the self-attention.
        rotary: Rows of the rotary table.
        relative_TS: Rows of the table of distances or buckets (Shaw, T5).
        memory_BSD: Output of the encoder, for cross attention.
        memory_mask: Of the cross attention.
        cache: Keys and values of earlier tokens.
    """

    mask: Mask
    rotary: Tensor | None = None
    relative_TS: Tensor | None = None
    memory_BSD: Tensor | None = None
    memory_mask: Mask | None = None
    cache: KVCache | None = None


class Block(nn.Module):
    """Self-attention, optional cross attention, feed-forward; pre- or post-norm; in sequence or in parallel.

    Args:
        config: The model.
        layer: Index of the block in its stack.
        cross: Has attention to an encoder's output.
        dropout: Of each sub-layer's output, and inside the feed-forward layer.
        attention_dropout: Of the attention weights.

    Attributes:
        recomputed: Parts that are recomputed in the backward pass (`recompute.py`).
    """

    recomputed: Collection[str] = ()

    def __init__(
        self, config: ModelConfig, *, layer: int, cross: bool, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.pre_norm = config.norm_position == "pre"
        self.parallel = config.parallel_residual
        self.residual_scale = config.residual_scale
        self.attn_norm = build_norm(config)
        self.self_attn = Attention(config, layer=layer, dropout=attention_dropout)
        self.cross_norm = build_norm(config) if cross else None
        self.cross_attn = Attention(config, layer=layer, cross=True, dropout=attention_dropout) if cross else None
        self.mlp_norm = None if config.shared_norm else build_norm(config)
        sparse = layer in config.moe_layers
        self.mlp = Experts(config, dropout=dropout) if sparse else FeedForward(config, dropout=dropout)

    def forward(self, x_BTD: Tensor, context: BlockContext, align: Alignment | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); `align` receives the weights of the cross attention."""
        if self.parallel:
            return self._parallel(x_BTD, context)
        if align is not None and align.mask is not None:
            # A second pass over the target with another mask, only for the attention weights.
            wide = replace(context, mask=align.mask)
            self._attend_memory(self._attend_self(x_BTD, replace(wide, cache=None)), wide, align)
            align = None
        x_BTD = self._attend_self(x_BTD, context)
        if self.cross_attn is not None:
            x_BTD = self._attend_memory(x_BTD, context, align)
        assert self.mlp_norm is not None, "shared_norm goes with parallel_residual"
        mlp_BTD = self._sublayer("ffn", self._before(self.mlp_norm), self.mlp, x_BTD)
        return self._after(self.mlp_norm, x_BTD, mlp_BTD)

    def _attend_self(self, x_BTD: Tensor, context: BlockContext) -> Tensor:
        attn_BTD = self._self_attention(self._before(self.attn_norm), x_BTD, context)
        return self._after(self.attn_norm, x_BTD, attn_BTD)

    def _self_attention(self, norm: nn.Module | None, x_BTD: Tensor, context: BlockContext) -> Tensor:
        inputs = {"rotary": context.rotary, "relative_TS": context.relative_TS, "cache": context.cache}
        return self._sublayer("mha", norm, self.self_attn, x_BTD, context.mask, **inputs)

    def _attend_memory(self, x_BTD: Tensor, context: BlockContext, align: Alignment | None) -> Tensor:
        assert self.cross_attn is not None and self.cross_norm is not None
        inputs = {"memory_BSD": context.memory_BSD, "cache": context.cache, "align": align}
        mask = context.memory_mask or Mask()
        attn_BTD = self._sublayer("mha", self._before(self.cross_norm), self.cross_attn, x_BTD, mask, **inputs)
        return self._after(self.cross_norm, x_BTD, attn_BTD)

    def _sublayer(
        self, part: str, norm: nn.Module | None, layer: nn.Module, x_BTD: Tensor, *masks: Mask, **inputs: Any
    ) -> Tensor:
        """layer(norm(x)), recomputed in the backward pass if `part` is, unless it fills a cache or an alignment."""

        def compute(x_BTD: Tensor) -> Tensor:
            return layer(x_BTD if norm is None else norm(x_BTD), *masks, **inputs)

        has_side_effect = inputs.get("cache") is not None or inputs.get("align") is not None
        if part in self.recomputed and torch.is_grad_enabled() and not has_side_effect:
            return recompute(layer, compute, x_BTD)
        return compute(x_BTD)

    def _before(self, norm: nn.Module) -> nn.Module | None:
        return norm if self.pre_norm else None

    def _after(self, norm: nn.Module, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
        x_BTD = self._add(x_BTD, out_BTD)
        return x_BTD if self.pre_norm else norm(x_BTD)

    def _add(self, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
        """The residual stream with the output of a sub-layer."""
        if self.residual_scale != 1.0:
            out_BTD = out_BTD * self.residual_scale
        return dropout_add(x_BTD, out_BTD, self.dropout, self.training)

    def _parallel(self, x_BTD: Tensor, context: BlockContext) -> Tensor:
        if self.mlp_norm is None:
            h_BTD = self.attn_norm(x_BTD)
            attn_BTD = self._self_attention(None, h_BTD, context)
            mlp_BTD = self._sublayer("ffn", None, self.mlp, h_BTD)
        else:
            attn_BTD = self._self_attention(self.attn_norm, x_BTD, context)
            mlp_BTD = self._sublayer("ffn", self.mlp_norm, self.mlp, x_BTD)
        return self._add(self._add(x_BTD, attn_BTD), mlp_BTD)
