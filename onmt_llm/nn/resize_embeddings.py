"""Give a model another vocabulary: known tokens keep their rows, those of new tokens are initialised as usual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.layers.position_wise import TiedHead, TokenEmbedding
from onmt_llm.nn.transformer import Transformer

RowMapping = Sequence[int | None]
"""For each row of a new table, the row of the old one to copy; None = initialise it."""


@torch.no_grad()
def resize_embeddings(
    model: Transformer,
    config: ModelConfig,
    *,
    tgt: RowMapping,
    src: RowMapping,
    param_init: float = 0.0,
    glorot: bool = False,
) -> None:
    """Replace, in place, the embeddings and the output layer by those of other vocabularies.

    Args:
        model: Its layers are not wrapped yet.
        config: Its shape with the new sizes.
        tgt: Rows of the decoder's embedding and of the output layer.
        src: Rows of the encoder's embedding, if it has its own.
        param_init, glorot: Initialisation of new rows; see `init_weights`.
    """

    def carry(name: str, old: nn.Module, new: nn.Module, rows: RowMapping) -> None:
        part, has_encoder = nn.ModuleDict({name: new}), model.encoder is not None
        init_weights(part, param_init=param_init, glorot=glorot, has_encoder=has_encoder)
        kept = [(here, there) for here, there in enumerate(rows) if there is not None]
        here, there = (torch.tensor(side, dtype=torch.long) for side in (zip(*kept, strict=True) if kept else ([], [])))
        for key, parameter in new.named_parameters():
            parameter[here] = old.get_parameter(key)[there].to(parameter.dtype)
        like = next(old.parameters(), None)
        if like is not None:
            new.to(device=like.device, dtype=like.dtype)

    for stack, rows in ((model.encoder, src), (model.decoder, tgt)):
        if stack is not None and stack.embed_tokens is not None:
            table = TokenEmbedding(len(rows), stack.embed_tokens.embedding_dim)
            carry("embed_tokens", stack.embed_tokens, table, rows)
            stack.embed_tokens = table
    if model.lm_head is not None:
        bias = model.lm_head.bias is not None
        head = (
            TiedHead(len(tgt), bias=bias)
            if isinstance(model.lm_head, TiedHead)
            else nn.Linear(config.hidden_size, len(tgt), bias=bias)
        )
        carry("lm_head", model.lm_head, head, tgt)
        model.lm_head = head
    model.config = config
