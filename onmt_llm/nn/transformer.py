"""The Transformer: every model family is this class with another `ModelConfig`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError
from onmt_llm.nn.activations.offload import Offload
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.nn.layers.attention import Alignment, Attention
from onmt_llm.nn.layers.block import Block
from onmt_llm.nn.layers.experts import SelectionBias
from onmt_llm.nn.layers.latent_attention import LatentAttention
from onmt_llm.nn.layers.position_wise import FeedForward, TiedHead, capped
from onmt_llm.nn.layers.stack import Stack
from onmt_llm.nn.masks import Mask, decoder_masks, encoder_mask, full_context_mask, memory_mask
from onmt_llm.nn.positions import Positions, packed


class Transformer(nn.Module):
    """Encoder-decoder, decoder-only or encoder-only Transformer, depending on the config.

    Examples:
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
        """Layers of a `KVCache` for this model: the self-attentions of its decoder, of whatever class."""
        modules = [] if self.decoder is None else self.decoder.modules()
        return sum(getattr(module, "cross", True) is False for module in modules)

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
        x_BSD = encoder.embed(src_BS, embedding, positions, features_BSF)
        return encoder(x_BSD, positions, {"full_attention": mask})

    def decode(
        self,
        tgt_BT: Tensor,
        memory_BSD: Tensor | None = None,
        src_mask_BS: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        doc_BT: Tensor | None = None,
        src_doc_BS: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm; `logits` turns them into scores.

        Args:
            tgt_BT: Token ids. Without a cache: right-padded, from the start of the sequence. With one: the tokens that
                follow those in the cache; rows are left-padded as in `cache.left_pad_B`.
            memory_BSD: Output of `encode`, for an encoder-decoder; optional once the cache has seen it.
            src_mask_BS: True where a source token is real.
            cache: Keys and values of the tokens before tgt_BT; those of tgt_BT are added.
            doc_BT: Number of the document that each token of a packed row belongs to, 0 = padding. Documents do not
                see each other, and each starts at position 0.
            src_doc_BS: The same for source tokens; each document sees only its own.

        With a cache that holds fewer memories than there are rows, rows / memories neighbours share each of them, and
        `src_mask_BS` is that of the memories.
        """
        return self._decode(tgt_BT, memory_BSD, memory_mask(src_mask_BS, doc_BT, src_doc_BS), cache, doc_BT)

    def decode_with_alignment(
        self,
        tgt_BT: Tensor,
        memory_BSD: Tensor | None = None,
        src_mask_BS: Tensor | None = None,
        *,
        align: tuple[int, int],
        cache: KVCache | None = None,
        doc_BT: Tensor | None = None,
        src_doc_BS: Tensor | None = None,
        full_context_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `decode`, with the attention to the source of one decoder layer.

        Args:
            tgt_BT, memory_BSD, src_mask_BS, cache, doc_BT, src_doc_BS: See `decode`.
            align: (layer, heads): number of the layer, negative = from the last; its first `heads` heads are averaged,
                0 = all.
            full_context_BT: Without a cache: True where a target token is real. The layer's self-attention then sees
                all of these, later ones too (OpenNMT-py's `full_context_alignment`).

        Returns:
            Hidden states (B, T, D), and attention weights (B, T, S) before dropout.
        """
        alignment = Alignment(align[1], full_context_mask(full_context_BT, doc_BT))
        mask = memory_mask(src_mask_BS, doc_BT, src_doc_BS)
        hidden_BTD = self._decode(
            tgt_BT, memory_BSD, mask, cache, doc_BT, align={self._alignment_layer(align): alignment}
        )
        assert alignment.weights_BTS is not None
        return hidden_BTD, alignment.weights_BTS

    def _decode(
        self,
        tgt_BT: Tensor,
        memory_BSD: Tensor | None,
        memory_mask: Mask,
        cache: KVCache | None,
        doc_BT: Tensor | None,
        align: Mapping[int, Alignment] | None = None,
    ) -> Tensor:
        decoder = _present(self.decoder, "decode", "decoder")
        assert cache is None or doc_BT is None, "packed documents are for training: they have no cache"
        positions, left_pad_B = Positions(0, tgt_BT.shape[1]), None
        if cache is not None:
            left_pad_B, positions = cache.left_pad_B, cache.positions(tgt_BT.shape[1])
        elif doc_BT is not None:
            positions = packed(doc_BT)
        masks = decoder_masks(self.config, positions, tgt_BT.device, left_pad_B=left_pad_B, doc_BT=doc_BT)
        x_BTD = decoder.embed(tgt_BT, decoder.embed_tokens, positions)
        return decoder(
            x_BTD, positions, masks, memory_BSD=memory_BSD, memory_mask=memory_mask, cache=cache, align=align
        )

    def _alignment_layer(self, align: tuple[int, int]) -> int:
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
        """Logits (B, T, V) of the next token, from the output of `decode`; any leading shape is allowed."""
        decoder, lm_head = _present(self.decoder, "logits", "decoder"), self.lm_head
        if self.config.logit_factor != 1.0:
            hidden_BTD = hidden_BTD * self.config.logit_factor
        tied = isinstance(lm_head, TiedHead)
        logits_BTV = lm_head(hidden_BTD, decoder.embed_tokens) if tied else lm_head(hidden_BTD)
        return capped(logits_BTV, self.config.logit_softcap)

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
    """Change the dropout rates of a model during training (schedules); LoRA's own dropout stays."""
    for module in model.modules():
        if isinstance(module, Attention | LatentAttention):
            module.dropout = attention_dropout
        elif isinstance(module, Block | FeedForward | Stack):
            module.dropout = dropout


def set_offload(model: Transformer, **settings: Any) -> None:
    """Offload the activations of the blocks to the CPU's memory until the backward pass; see `Offload`."""
    offload = Offload([*model.parameters(), *model.buffers()], **settings)
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.offload = offload


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model with this configuration."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def unfreeze(model: nn.Module) -> None:
    """Train all parameters, except the biases of the choice of experts, which no gradient reaches."""
    model.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, SelectionBias):
            module.requires_grad_(False)


def set_embedding_noise(model: Transformer, alpha: float) -> None:
    """Change the noise that token embeddings get in training (NEFTune); 0 = none."""
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.noise_alpha = alpha


def _present(part: Any, method: str, name: str) -> Any:
    if part is None:
        raise ConfigError(f"{method}() needs a {name}, but the model has {name}_layers: 0.")
    return part


def _check(config: ModelConfig) -> None:
    if config.decoder_layers and config.vocab_size < 1:
        raise ConfigError(f"vocab_size must be >= 1 to build a model, but is {config.vocab_size}.")
    both = config.encoder_layers > 0 and config.decoder_layers > 0
    if config.parallel_residual and (config.norm_position != "pre" or both):
        raise ConfigError(
            "parallel_residual needs norm_position: pre and a single stack, but the model has "
            f"norm_position: {config.norm_position}, encoder_layers: {config.encoder_layers}, "
            f"decoder_layers: {config.decoder_layers}."
        )
