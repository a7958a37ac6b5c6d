"""The Transformer that every family of models is, under another `ModelConfig`."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, overload

import torch
from torch import Tensor, nn

from onmt_llm.config.model import FeatureConfig, ModelConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.nn.activations.offload import Offload
from onmt_llm.nn.activations.recompute import recompute
from onmt_llm.nn.cpu.dropout import dropout
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.attention import (
    Alignment,
    Attention,
    Mask,
    build_relative_bias,
    decoder_mask,
    encoder_mask,
    memory_mask,
    padding_mask,
    relative_bias,
    same_document,
)
from onmt_llm.nn.layers.block import Block
from onmt_llm.nn.layers.embeddings import TiedHead, TokenEmbedding, add_noise
from onmt_llm.nn.layers.feed_forward import FeedForward
from onmt_llm.nn.layers.norms import build_norm
from onmt_llm.nn.layers.positions import (
    Positions,
    PositionTable,
    build_rotary_table,
    build_sinusoidal_table,
    left_padded,
    packed,
    relative_index,
)


class Stack(nn.Module):
    """Embedding, positions, blocks and final norm of the encoder or of the decoder.

    Args:
        config: The model.
        layers: Number of blocks.
        vocab_size: Rows of the embedding; None = the stack has none and is handed the other's.
        cross: The blocks attend to an encoder's memory.
        causal: No token sees those behind it.
        features: Features of the tokens.
        dropout: Of embeddings and sub-layers.
        attention_dropout: Of the attention weights.

    Attributes:
        recomputed: Parts that are computed again in the backward pass (`recompute.py`).
        offload: Takes what the blocks keep for it to main memory.
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
        self.layers = nn.ModuleList(
            Block(config, layer=i, cross=cross, dropout=dropout, attention_dropout=attention_dropout)
            for i in range(layers)
        )
        # Named where the layers share it; else each attention has its own.
        self.relative_bias = build_relative_bias(config) if config.position == "t5" and config.relative_shared else None
        self.norm = build_norm(config) if config.norm_position == "pre" else None
        self.rotary = self.sinusoid = None
        if config.position == "rotary":
            self.rotary = PositionTable(functools.partial(build_rotary_table, config.rope, config.rotary_size))
        elif config.position == "sinusoidal":
            self.sinusoid = PositionTable(functools.partial(build_sinusoidal_table, size, kind=config.sinusoid))

    def forward(
        self,
        ids_BT: Tensor,
        embedding: nn.Module,
        positions: Positions,
        mask: Mask,
        *,
        features_BTF: Tensor | None = None,
        memory_BSD: Tensor | None = None,
        memory_mask: Mask | None = None,
        cache: KVCache | None = None,
        align: Mapping[int, Alignment] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm; `align` gets the attention of the layers that it names."""
        x_BTD = self._embed(ids_BT, features_BTF, embedding, positions)
        rotary = None if self.rotary is None else self.rotary.rows(positions, x_BTD.device, x_BTD.dtype)
        relative_TS = relative_index(self.config, positions, x_BTD.device, causal=self.causal)
        if self.relative_bias is not None and relative_TS is not None:
            mask = mask.plus(relative_bias(self.relative_bias, relative_TS))
        again = "block" in self.recomputed and torch.is_grad_enabled() and cache is None
        with nullcontext() if self.offload is None else self.offload.hooks():
            for number, block in enumerate(self.layers):
                asked = None if align is None else align.get(number)
                run = functools.partial(recompute, block, block) if again and asked is None else block
                x_BTD = run(
                    x_BTD,
                    mask,
                    rotary=rotary,
                    relative_TS=relative_TS,
                    memory_BSD=memory_BSD,
                    memory_mask=memory_mask,
                    cache=cache,
                    align=asked,
                )
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def _embed(self, ids_BT: Tensor, features_BTF: Tensor | None, embedding: nn.Module, positions: Positions) -> Tensor:
        x_BTD = add_noise(embedding(ids_BT), self.noise_alpha if self.training else 0.0, positions)
        if self.embed_features:
            x_BTD = self._add_features(x_BTD, features_BTF)
        if self.config.scale_embeddings:
            x_BTD = x_BTD * math.sqrt(self.config.hidden_size)
        if self.sinusoid is not None:
            x_BTD = x_BTD + self.sinusoid.rows(positions, x_BTD.device, x_BTD.dtype)
        elif self.embed_positions is not None:
            if positions.end > self.config.max_position and positions.last >= self.config.max_position:
                raise DataError(
                    f"A sequence must have at most max_position = {self.config.max_position} tokens with learned "
                    f"positions, but has {positions.last + 1}.",
                    hint="shorten it, e.g. with the transform filtertoolong",
                )
            x_BTD = x_BTD + positions.rows(self.embed_positions.weight)
        return dropout(x_BTD, self.dropout, self.training)

    def _add_features(self, x_BTD: Tensor, features_BTF: Tensor | None) -> Tensor:
        if features_BTF is None or features_BTF.shape[-1] != len(self.embed_features):
            found = 0 if features_BTF is None else features_BTF.shape[-1]
            raise DataError(f"Every source token must have {len(self.embed_features)} features, but has {found}.")
        parts = [embed(features_BTF[..., i]) for i, embed in enumerate(self.embed_features)]
        if self.config.feat_merge == "concat":
            return torch.cat([x_BTD, *parts], dim=-1)
        return torch.stack([x_BTD, *parts]).sum(dim=0)


class Transformer(nn.Module):
    """Encoder-decoder, decoder-only or encoder-only Transformer, as the config says.

    Example:
        >>> model = Transformer(ModelConfig(vocab_size=100, hidden_size=32, heads=4, decoder_layers=2))
        >>> model(torch.tensor([[1, 5, 7]])).shape
        torch.Size([1, 3, 100])

    Args:
        config: Shape of the model.
        dropout: Of embeddings and sub-layers, while training.
        attention_dropout: Of the attention weights, while training.

    Attributes:
        config: Shape of the model.
        encoder, decoder: Stacks, or None where the config has no layers for them.
        lm_head: Output layer: a Linear, or a TiedHead that uses the decoder's embedding.
    """

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0, attention_dropout: float = 0.0) -> None:
        super().__init__()
        _check(config)
        self.config = config
        build = functools.partial(Stack, config, dropout=dropout, attention_dropout=attention_dropout)
        self.encoder: Stack | None = None
        self.decoder: Stack | None = None
        self.lm_head: Any = None
        if config.encoder_layers:
            shared = config.share_embeddings and config.decoder_layers > 0
            vocab_size = None if shared else config.encoder_vocab_size
            self.encoder = build(
                layers=config.encoder_layers,
                vocab_size=vocab_size,
                cross=False,
                causal=False,
                features=config.src_features,
            )
        if config.decoder_layers:
            cross = config.encoder_layers > 0
            self.decoder = build(layers=config.decoder_layers, vocab_size=config.vocab_size, cross=cross, causal=True)
            self.lm_head = (
                TiedHead(config.vocab_size, bias=config.lm_head_bias)
                if config.tie_embeddings
                else nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
            )

    @property
    def cache_layers(self) -> int:
        """Layers of a `KVCache` for this model: the self-attentions of its decoder."""
        modules = [] if self.decoder is None else self.decoder.modules()
        return sum(isinstance(module, Attention) and not module.cross for module in modules)

    def encode(
        self,
        src_BS: Tensor,
        src_mask_BS: Tensor | None = None,
        *,
        features_BSF: Tensor | None = None,
        doc_BS: Tensor | None = None,
    ) -> Tensor:
        """Memory (B, S, D) of the source.

        Args:
            src_BS: Token ids, right-padded.
            src_mask_BS: True where a token is real; None = all are.
            features_BSF: Ids of the tokens' features, for a model with `src_features`.
            doc_BS: Number of the document that each token of a packed row belongs to, 0 = padding; see `decode`.
        """
        encoder = _present(self.encoder, "encode", "encoder")
        embedding = encoder.embed_tokens
        if embedding is None:
            embedding = _present(self.decoder, "encode", "decoder").embed_tokens
        positions = Positions(0, src_BS.shape[1]) if doc_BS is None else packed(doc_BS)
        mask = encoder_mask(self.config, positions, src_mask_BS, src_BS.device, doc_BS=doc_BS)
        return encoder(
            src_BS,
            embedding,
            positions,
            mask,
            features_BTF=features_BSF,
        )

    @overload
    def decode(
        self,
        tgt_BT: Tensor,
        memory_BSD: Tensor | None = None,
        src_mask_BS: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        doc_BT: Tensor | None = None,
        src_doc_BS: Tensor | None = None,
        align: None = None,
        align_mask_BT: Tensor | None = None,
    ) -> Tensor: ...

    @overload
    def decode(
        self,
        tgt_BT: Tensor,
        memory_BSD: Tensor | None = None,
        src_mask_BS: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        doc_BT: Tensor | None = None,
        src_doc_BS: Tensor | None = None,
        align: tuple[int, int],
        align_mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def decode(
        self,
        tgt_BT: Tensor,
        memory_BSD: Tensor | None = None,
        src_mask_BS: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        doc_BT: Tensor | None = None,
        src_doc_BS: Tensor | None = None,
        align: tuple[int, int] | None = None,
        align_mask_BT: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) after the final norm; `logits` turns them into scores.

        Args:
            tgt_BT: Token ids. Without a cache: right-padded, from the start of the sequence. With one: the tokens that
                follow those in the cache; rows are left-padded as `cache.left_pad_B` says.
            memory_BSD: Output of `encode`, for an encoder-decoder; may be left out once the cache has seen it.
            src_mask_BS: True where a source token is real.
            cache: Keys and values of the tokens before tgt_BT; those of tgt_BT are added.
            doc_BT: Number of the document that each token of a packed row belongs to, 0 = padding; documents do not
                see each other and each starts at position 0.
            src_doc_BS: The same of the source's tokens, of which each document sees its own only.
            align: (layer, heads): return the attention to the source too, (B, T, S) before dropout: that of decoder
                layer `layer` (a negative one counts from the last), averaged over its first `heads` heads, 0 = all.
            align_mask_BT: With `align`, without a cache: True where a target token is real. The attention is then that
                of a layer whose self-attention sees all of these (OpenNMT-py's `full_context_alignment`).

        With a cache that holds fewer memories than there are rows, rows / memories neighbours share each of them, and
        `src_mask_BS` is that of the memories.

        Returns:
            (B, T, D), with `align` also (B, T, S).
        """
        decoder = _present(self.decoder, "decode", "decoder")
        assert cache is None or doc_BT is None, "packed documents are for training: they have no cache"
        positions, left_pad_B = Positions(0, tgt_BT.shape[1]), None
        if cache is not None:
            left_pad_B = cache.left_pad_B
            positions = Positions(cache.length, tgt_BT.shape[1])
            if left_pad_B is not None:
                positions = left_padded(cache.length, tgt_BT.shape[1], left_pad_B)
        elif doc_BT is not None:
            positions = packed(doc_BT)
        mask = decoder_mask(self.config, positions, tgt_BT.device, left_pad_B=left_pad_B, doc_BT=doc_BT)
        alignment = None if align is None else Alignment(align[1], _wide_mask(align_mask_BT, doc_BT))
        hidden_BTD = decoder(
            tgt_BT,
            decoder.embed_tokens,
            positions,
            mask,
            memory_BSD=memory_BSD,
            memory_mask=memory_mask(src_mask_BS, doc_BT, src_doc_BS),
            cache=cache,
            align=None if align is None or alignment is None else {self._align_layer(align): alignment},
        )
        if alignment is None:
            return hidden_BTD
        assert alignment.weights_BTS is not None
        return hidden_BTD, alignment.weights_BTS

    def _align_layer(self, align: tuple[int, int]) -> int:
        layer, heads = align
        layers = self.config.decoder_layers
        if self.encoder is None:
            raise ConfigError("An alignment needs an encoder to align with, but the model has encoder_layers: 0.")
        if not -layers <= layer < layers or not 0 <= heads <= self.config.heads:
            raise ConfigError(
                f"An alignment must come from one of {layers} decoder layers and at most {self.config.heads} heads, "
                f"but alignment_layer is {layer} and alignment_heads {heads}."
            )
        return layer % layers

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores (B, T, V) of the next token, from the output of `decode`; any leading shape will do."""
        decoder, lm_head = _present(self.decoder, "logits", "decoder"), self.lm_head
        if self.config.scale_logits:
            hidden_BTD = hidden_BTD / math.sqrt(self.config.hidden_size)
        return lm_head(hidden_BTD, decoder.embed_tokens) if isinstance(lm_head, TiedHead) else lm_head(hidden_BTD)

    def forward(
        self,
        *ids: Tensor,
        src_mask_BS: Tensor | None = None,
        features_BSF: Tensor | None = None,
        src_doc_BS: Tensor | None = None,
        **decode: Any,
    ) -> Tensor:
        """`model(tgt_BT)` of a decoder-only model, `model(src_BS, tgt_BT)` of an encoder-decoder: logits (B, T, V).
        `model(src_BS)` of an encoder-only model: memory (B, S, D).

        Args:
            ids: Token ids of the target, after those of the source if there is an encoder.
            src_mask_BS: True where a source token is real.
            features_BSF: Ids of the source tokens' features, for a model with `src_features`.
            src_doc_BS: Documents of a packed source.
            decode: `cache` or `doc_BT` of `decode`.
        """
        wanted = (self.encoder is not None) + (self.decoder is not None)
        if len(ids) != wanted:
            raise TypeError(
                f"this model takes {wanted} tensor(s) of token ids (encoder_layers: {self.config.encoder_layers}, "
                f"decoder_layers: {self.config.decoder_layers}), but got {len(ids)}"
            )
        if self.encoder is None:
            return self.logits(self.decode(ids[0], **decode))
        memory_BSD = self.encode(ids[0], src_mask_BS, features_BSF=features_BSF, doc_BS=src_doc_BS)
        if self.decoder is None:
            return memory_BSD
        return self.logits(self.decode(ids[1], memory_BSD, src_mask_BS, src_doc_BS=src_doc_BS, **decode))


def set_dropout(model: nn.Module, dropout: float, attention_dropout: float) -> None:
    """Change the dropout rates of a model under training (schedules); LoRA's own dropout stays."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.dropout = attention_dropout
        elif isinstance(module, Block | FeedForward | Stack):
            module.dropout = dropout


def set_offload(model: Transformer, **settings: Any) -> None:
    """Have what the blocks keep for the backward pass wait in main memory; `settings` are those of `Offload`."""
    offload = Offload([*model.parameters(), *model.buffers()], **settings)
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.offload = offload


def set_embedding_noise(model: Transformer, alpha: float) -> None:
    """Change how much noise the token embeddings get while the model is trained (NEFTune); 0 = none."""
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.noise_alpha = alpha


def _wide_mask(mask_BT: Tensor | None, doc_BT: Tensor | None) -> Mask | None:
    """All real tokens (of the document), those to come included."""
    if mask_BT is None or doc_BT is None:
        return None if mask_BT is None else padding_mask(mask_BT)
    own_BTT = same_document(doc_BT, doc_BT)
    seen_BTT = own_BTT & mask_BT[:, None, :]
    return Mask((seen_BTT | (own_BTT & ~seen_BTT.any(dim=-1, keepdim=True)))[:, None])


def _present(part: Any, method: str, name: str) -> Any:
    if part is None:
        raise ConfigError(f"{method}() needs a {name}, but the model has {name}_layers: 0.")
    return part


def _check(config: ModelConfig) -> None:
    if config.decoder_layers and config.vocab_size < 1:
        raise ConfigError(f"vocab_size must be >= 1 to build a model, but is {config.vocab_size}.")
    both = config.encoder_layers > 0 and config.decoder_layers > 0
    if config.parallel_residual and (config.norm_position == "post" or both):
        raise ConfigError(
            "parallel_residual must go with norm_position: pre and a single stack, but the model has "
            f"norm_position: {config.norm_position}, encoder_layers: {config.encoder_layers}, "
            f"decoder_layers: {config.decoder_layers}."
        )
