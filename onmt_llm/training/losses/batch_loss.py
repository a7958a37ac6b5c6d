"""`batch_loss`: run the model on a batch and compute the loss of any objective.

Shapes: B batch, T positions, S source positions, D width, M aligned pairs, K corpora.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from torch import Tensor

from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.block_expansion import recorded_outputs
from onmt_llm.nn.layers.experts import recorded_routing
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.balance import balance_loss, real_tokens
from onmt_llm.training.losses.cross_entropy import IGNORE, CorpusSpans, token_loss
from onmt_llm.training.losses.divergence import divergence_loss
from onmt_llm.training.losses.objective import LIKELIHOOD, GuidedAlignment, Objective, alignment_loss
from onmt_llm.training.losses.output_layer import OutputLayer
from onmt_llm.training.losses.token_loss import TokenLoss


def batch_loss(
    model: Transformer, batch: Batch, *, objective: Objective = LIKELIHOOD, scale: float = 1.0, corpora: int = 0
) -> TokenLoss:
    """Loss of `model` on `batch`, for a language model or an encoder-decoder.

    Args:
        model: The model.
        batch: The batch.
        objective: What is minimised.
        scale: Factor of the gradient, for float16.
        corpora: Number of corpora whose likelihoods are summed separately; 0 = none.
    """
    if objective.preference is not None:
        return objective.preference(model, batch, scale, corpora)
    guide, alignment = objective.alignment, None
    recorded: AbstractContextManager[Sequence[Tensor]] = nullcontext(())
    if objective.balance:
        recorded = recorded_routing(model)
    compared: AbstractContextManager[Sequence[tuple[Tensor, Tensor]]] = nullcontext(())
    if objective.divergence:
        compared = recorded_outputs(model)
    with recorded as routing, compared as outputs:
        if guide is None or batch.align_M3 is None:
            hidden_BTD = hidden_states(model, batch)
        else:
            hidden_BTD, attention_BTS = _hidden_states_and_attention(model, batch, guide)
            alignment = guide.weight * alignment_loss(attention_BTS, batch.align_M3)
    loss = token_loss(
        hidden_BTD,
        batch.labels_BT,
        OutputLayer.of(model),
        label_smoothing=objective.label_smoothing,
        terms=[term(batch) for term in objective.terms],
        scale=scale,
        corpora=None if batch.corpus_P2 is None or not corpora else CorpusSpans(batch.corpus_P2, corpora),
        chunk_tokens=objective.chunk_tokens,
    )
    if alignment is not None:
        loss = loss.plus(alignment, scale)
    if routing:
        # Times the tokens, by which the sum of all terms is divided.
        balance = loss.tokens * balance_loss(routing, model.config.moe.experts_per_token, real_tokens(batch))
        loss = replace(loss.plus(objective.balance * balance, scale), balance=balance.detach())
    if outputs:
        divergence = loss.tokens * divergence_loss(outputs, real_tokens(batch))
        loss = loss.plus(objective.divergence * divergence, scale)
    return loss


def hidden_states(model: Transformer, batch: Batch) -> Tensor:
    """The decoder's normalised output at every position of `batch`, (B, T, D)."""
    return model.decode(
        batch.tgt_BT, _memory(model, batch), batch.src_mask_BS, doc_BT=batch.doc_BT, src_doc_BS=batch.src_doc_BS
    )


def _hidden_states_and_attention(model: Transformer, batch: Batch, guide: GuidedAlignment) -> tuple[Tensor, Tensor]:
    """The same, and the guided attention to the source, (B, T, S)."""
    return model.decode_with_alignment(
        batch.tgt_BT,
        _memory(model, batch),
        batch.src_mask_BS,
        doc_BT=batch.doc_BT,
        src_doc_BS=batch.src_doc_BS,
        align=(guide.layer, guide.heads),
        full_context_BT=batch.labels_BT != IGNORE if guide.full_context else None,
    )


def _memory(model: Transformer, batch: Batch) -> Tensor | None:
    """The encoder's output; None for a language model."""
    if batch.src_BS is None:
        return None
    return model.encode(batch.src_BS, batch.src_mask_BS, features_BSF=batch.features_BSF, doc_BS=batch.src_doc_BS)
