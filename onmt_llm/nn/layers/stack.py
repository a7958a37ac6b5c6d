"""A stack of blocks: embedding, positions, blocks and final norm of the encoder or of the decoder."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from onmt_llm.config.model import FeatureConfig, LayerType, ModelConfig
from onmt_llm.errors import DataError
from onmt_llm.nn.activations.offload import Offload
from onmt_llm.nn.activations.recompute import recompute
from onmt_llm.nn.cpu.dropout import dropout
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.attention import Alignment, build_relative_bias, relative_bias
from onmt_llm.nn.layers.block import Block, BlockContext
from onmt_llm.nn.layers.position_wise import TokenEmbedding, build_norm
from onmt_llm.nn.masks import Mask
from onmt_llm.nn.positions import (
    Positions,
    PositionTable,
    RotaryTable,
    build_sinusoidal_table,
    relative_index,
)


def beyond_table(limit: int, length: int) -> DataError:
    """The error of a sequence that is longer than a table of learned positions."""
    return DataError(
        f"A sequence must have at most max_position = {limit} tokens with learned positions, but has {length}.",
        hint="shorten it, e.g. with the transform filtertoolong",
    )


class Stack(nn.Module):
    """Embedding, positions, blocks and final norm of the encoder or of the decoder.

    Args:
        config: The model.
        layers: Number of blocks.
        vocab_size: Rows of the embedding; None = the stack has none and uses the other's.
        cross: The blocks attend to an encoder's output.
        causal: No token sees later ones.
        features: Features of the tokens.
        dropout: Of embeddings and sub-layers.
        attention_dropout: Of the attention weights.

    Attributes:
        recomputed: Parts that are recomputed in the backward pass (`recompute.py`).
        offload: Moves the blocks' activations to the CPU's memory until then.
    """

    recomputed: Collection[str] = ()
    offload: Offload | None = None

    def __init__(
        self,
        config: ModelConfig,
        *,
        layers: int,
        vocab_size: int | None,
        cross: bool,
        causal: bool,
        features: Sequence[FeatureConfig] = (),
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.causal = causal
        self.dropout = dropout
        self.noise_alpha = 0.0
        token_size = config.src_token_size if features else size
        self.embed_tokens = TokenEmbedding(vocab_size, token_size) if vocab_size else None
        self.embed_features = nn.ModuleList(nn.Embedding(feature.vocab_size, feature.size) for feature in features)
        self.embed_positions = nn.Embedding(config.max_position, size) if config.position == "learned" else None
        self.embed_norm = build_norm(config) if config.embed_norm else None
        self.layers = nn.ModuleList(
            Block(config, layer=i, causal=causal, cross=cross, dropout=dropout, attention_dropout=attention_dropout)
            for i in range(layers)
        )
        # Here if the layers share it; otherwise each attention has its own.
        self.relative_bias = build_relative_bias(config) if config.position == "t5" and config.relative_shared else None
        self.norm = None if config.norm_position == "post" else build_norm(config)
        self.rotary: dict[LayerType, RotaryTable] = {}
        self.sinusoid = None
        if config.position == "rotary":
            whole = RotaryTable(config.rope, config.rotary_size)
            local = RotaryTable(config.rope.local, config.rotary_size)
            is_one = config.rope.local_theta is None
            self.rotary = {"full_attention": whole, "sliding_attention": whole if is_one else local}
        elif config.position == "sinusoidal":
            self.sinusoid = PositionTable(functools.partial(build_sinusoidal_table, size, kind=config.sinusoid))

    def embed(
        self, ids_BT: Tensor, embedding: nn.Module, positions: Positions, features_BTF: Tensor | None = None
    ) -> Tensor:
        """Input (B, T, D) of the first block: token vectors, features and absolute positions, normalised with
        `embed_norm`.

        Raises:
            DataError: Features are missing, or a sequence is longer than a table of learned positions.
        """
        x_BTD = add_noise(embedding(ids_BT), self.noise_alpha if self.training else 0.0, positions)
        if self.embed_features:
            x_BTD = self._add_features(x_BTD, features_BTF)
        if self.config.embedding_factor != 1.0:
            x_BTD = x_BTD * self.config.embedding_factor
        if self.sinusoid is not None:
            x_BTD = x_BTD + self.sinusoid.rows(positions, x_BTD.device, x_BTD.dtype)
        elif self.embed_positions is not None:
            self._check_positions(positions)
            x_BTD = x_BTD + positions.rows(self.embed_positions.weight)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        return dropout(x_BTD, self.dropout, self.training)

    def forward(
        self,
        x_BTD: Tensor,
        positions: Positions,
        masks: Mapping[LayerType, Mask],
        *,
        memory_BSD: Tensor | None = None,
        memory_mask: Mask | None = None,
        cache: KVCache | None = None,
        align: Mapping[int, Alignment] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm.

        Args:
            x_BTD: See `embed`.
            positions: Of x.
            masks: Of the self-attentions, by the type of the layer.
            memory_BSD: Output of the encoder, for cross attention.
            memory_mask: Of the cross attentions.
            cache: Keys and values of earlier tokens; those of x are added.
            align: Receives the attention weights of single blocks, by their numbers.
        """
        context = self.context(x_BTD, positions, masks)
        context = replace(context, memory_BSD=memory_BSD, memory_mask=memory_mask, cache=cache)
        recomputes = "block" in self.recomputed and torch.is_grad_enabled() and cache is None
        with nullcontext() if self.offload is None else self.offload.hooks():
            for number, block in enumerate(self.layers):
                alignment = None if align is None else align.get(number)
                if recomputes and alignment is None:
                    x_BTD = recompute(block, block, x_BTD, context)
                else:
                    x_BTD = block(x_BTD, context, alignment)
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def context(self, x_BTD: Tensor, positions: Positions, masks: Mapping[LayerType, Mask]) -> BlockContext:
        """What all blocks need to know of the positions; arguments as in `forward`."""
        tables = {self.rotary[kind] for kind in masks} if self.rotary else set()
        rows = {table: table.rows(positions, x_BTD.device, x_BTD.dtype) for table in tables}
        rotary = {kind: rows[self.rotary[kind]] for kind in masks} if self.rotary else {}
        relative_TS = relative_index(self.config, positions, x_BTD.device, causal=self.causal)
        if self.relative_bias is not None and relative_TS is not None:
            bias = relative_bias(self.relative_bias, relative_TS)
            masks = {kind: mask.plus(bias) for kind, mask in masks.items()}
        return BlockContext(masks, rotary, relative_TS)

    def _check_positions(self, positions: Positions) -> None:
        limit = self.config.max_position
        if positions.end > limit and positions.last >= limit:
            raise beyond_table(limit, positions.last + 1)

    def _add_features(self, x_BTD: Tensor, features_BTF: Tensor | None) -> Tensor:
        if features_BTF is None or features_BTF.shape[-1] != len(self.embed_features):
            found = 0 if features_BTF is None else features_BTF.shape[-1]
            raise DataError(f"Every source token must have {len(self.embed_features)} features, but has {found}.")
        parts = [embed(features_BTF[..., i]) for i, embed in enumerate(self.embed_features)]
        if self.config.feat_merge == "concat":
            return torch.cat([x_BTD, *parts], dim=-1)
        return torch.stack([x_BTD, *parts]).sum(dim=0)


def add_noise(x_BTD: Tensor, alpha: float, positions: Positions) -> Tensor:
    """NEFTune (Jain et al. 2024): uniform noise of up to alpha / sqrt(T D).

    T is the length of the row, or of the document in a packed row.
    """
    if not alpha:
        return x_BTD
    length = positions.lengths() if positions.index_BT is not None else x_BTD.shape[1]
    size = alpha * (torch.as_tensor(length, device=x_BTD.device, dtype=torch.float32) * x_BTD.shape[2]).rsqrt()
    noise_BTD = torch.empty_like(x_BTD).uniform_(-1, 1)
    return x_BTD + noise_BTD * (size if size.ndim == 0 else size[..., None]).to(x_BTD.dtype)
