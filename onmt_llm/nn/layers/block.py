"""One layer of the residual stream: attention and feed-forward, with norms and residual connections."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from onmt_llm.config.model import LayerType, ModelConfig
from onmt_llm.nn.activations.recompute import recompute
from onmt_llm.nn.cpu.dropout import dropout_add
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.attention import Alignment, Attention
from onmt_llm.nn.layers.experts import Experts
from onmt_llm.nn.layers.latent_attention import LatentAttention
from onmt_llm.nn.layers.position_wise import FeedForward, build_norm
from onmt_llm.nn.masks import Mask


@dataclass(frozen=True)
class BlockContext:
    """Inputs that all blocks of a stack share.

    Attributes:
        masks: Of the self-attentions, by the type of the layer.
        rotary: Rows of the rotary tables, by the type of the layer; empty = the model has no rotary positions.
        relative_TS: Rows of the table of distances or buckets (Shaw, T5).
        memory_BSD: Output of the encoder, for cross attention.
        memory_mask: Of the cross attention.
        cache: Keys and values of earlier tokens.
    """

    masks: Mapping[LayerType, Mask]
    rotary: Mapping[LayerType, Tensor] = field(default_factory=dict)
    relative_TS: Tensor | None = None
    memory_BSD: Tensor | None = None
    memory_mask: Mask | None = None
    cache: KVCache | None = None


class Block(nn.Module):
    """Self-attention, optional cross attention, feed-forward, with norms as in `norm_position`; in sequence or in
    parallel.

    Args:
        config: The model.
        layer: Index of the block in its stack.
        causal: Belongs to the decoder, whose layers may differ (`layer_types`, `rope_layers`).
        cross: Has attention to an encoder's output.
        dropout: Of each sub-layer's output, and inside the feed-forward layer.
        attention_dropout: Of the attention weights.

    Attributes:
        kind: Which of the context's masks and rotary tables its self-attention uses.
        rotates: Whether its self-attention uses rotary positions, if the model does.
        recomputed: Parts that are recomputed in the backward pass (`recompute.py`).
    """

    recomputed: Collection[str] = ()

    def __init__(
        self,
        config: ModelConfig,
        *,
        layer: int,
        causal: bool,
        cross: bool,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.kind: LayerType = config.decoder_types[layer] if causal else "full_attention"
        self.rotates = config.rope_layers[layer] if causal and config.rope_layers else True
        self.norm_position = config.norm_position
        self.parallel = config.parallel_residual
        self.residual_scale = config.residual_scale
        before, after = self.norm_position != "output", self.norm_position in ("both", "output")
        self.attn_norm = build_norm(config) if before else None
        attention = LatentAttention if config.latent.kv_rank else Attention
        self.self_attn = attention(config, layer=layer, dropout=attention_dropout)
        self.attn_out_norm = build_norm(config) if after else None
        self.cross_norm = build_norm(config) if cross and before else None
        self.cross_attn = Attention(config, layer=layer, cross=True, dropout=attention_dropout) if cross else None
        self.cross_out_norm = build_norm(config) if cross and after else None
        self.mlp_norm = build_norm(config) if before and not config.shared_norm else None
        sparse = layer in config.moe_layers
        self.mlp = Experts(config, dropout=dropout) if sparse else FeedForward(config, dropout=dropout)
        self.mlp_out_norm = build_norm(config) if after else None

    def forward(self, x_BTD: Tensor, context: BlockContext, align: Alignment | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); `align` receives the weights of the cross attention."""
        if self.parallel:
            return self._parallel(x_BTD, context)
        if align is not None and align.mask is not None:
            # A second pass over the target with another mask, only for the attention weights.
            wide = replace(context, masks={self.kind: align.mask})
            self._attend_memory(self._attend_self(x_BTD, replace(wide, cache=None)), wide, align)
            align = None
        x_BTD = self._attend_self(x_BTD, context)
        if self.cross_attn is not None:
            x_BTD = self._attend_memory(x_BTD, context, align)
        mlp_BTD = self._sublayer("ffn", self._before(self.mlp_norm), self.mlp, x_BTD)
        return self._after(self.mlp_norm, self.mlp_out_norm, x_BTD, mlp_BTD)

    def _attend_self(self, x_BTD: Tensor, context: BlockContext) -> Tensor:
        attn_BTD = self._self_attention(self._before(self.attn_norm), x_BTD, context)
        return self._after(self.attn_norm, self.attn_out_norm, x_BTD, attn_BTD)

    def _self_attention(self, norm: nn.Module | None, x_BTD: Tensor, context: BlockContext) -> Tensor:
        rotary = context.rotary.get(self.kind) if self.rotates else None
        inputs = {"rotary": rotary, "relative_TS": context.relative_TS, "cache": context.cache}
        return self._sublayer("mha", norm, self.self_attn, x_BTD, context.masks[self.kind], **inputs)

    def _attend_memory(self, x_BTD: Tensor, context: BlockContext, align: Alignment | None) -> Tensor:
        assert self.cross_attn is not None
        inputs = {"memory_BSD": context.memory_BSD, "cache": context.cache, "align": align}
        mask = context.memory_mask or Mask()
        attn_BTD = self._sublayer("mha", self._before(self.cross_norm), self.cross_attn, x_BTD, mask, **inputs)
        return self._after(self.cross_norm, self.cross_out_norm, x_BTD, attn_BTD)

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

    def _before(self, norm: nn.Module | None) -> nn.Module | None:
        """The norm of a sub-layer's input."""
        return None if self.norm_position == "post" else norm

    def _after(self, norm: nn.Module | None, out_norm: nn.Module | None, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
        """The residual stream after a sub-layer's output is added."""
        out_BTD = out_BTD if out_norm is None else out_norm(out_BTD)
        x_BTD = self._add(x_BTD, out_BTD)
        return norm(x_BTD) if norm is not None and self.norm_position == "post" else x_BTD

    def _add(self, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
        """The residual stream with the output of a sub-layer."""
        if self.residual_scale != 1.0:
            out_BTD = out_BTD * self.residual_scale
        return dropout_add(x_BTD, out_BTD, self.dropout, self.training)

    def _parallel(self, x_BTD: Tensor, context: BlockContext) -> Tensor:
        if self.mlp_norm is None:
            assert self.attn_norm is not None, "parallel_residual goes with norm_position: pre"
            h_BTD = self.attn_norm(x_BTD)
            attn_BTD = self._self_attention(None, h_BTD, context)
            mlp_BTD = self._sublayer("ffn", None, self.mlp, h_BTD)
        else:
            attn_BTD = self._self_attention(self.attn_norm, x_BTD, context)
            mlp_BTD = self._sublayer("ffn", self.mlp_norm, self.mlp, x_BTD)
        return self._add(self._add(x_BTD, attn_BTD), mlp_BTD)
