"""The training loss: summed over trained positions, which alone go through the output layer.

The output layer is applied in chunks of positions, and the gradient of a chunk is taken while its logits are at hand.
So neither (all positions x V) logits nor a second pass through the output layer is ever needed.

Label smoothing is that of torch and OpenNMT-py: (1 - s) nll - s mean_v log p_v, a mixture over the whole vocabulary,
special tokens and filler rows included; up to a constant it is the divergence from the smoothed target. Positions
without a label have no share in it. The reported perplexity is that of the likelihood alone (OpenNMT-py's is smoothed).

Shapes: B batch, T positions, N trained positions of the batch, C positions of a chunk, D width, V vocabulary,
    S source positions, M aligned pairs, P examples or parts of them, K corpora.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.lm_prior import PriorTerm
from onmt_llm.training.losses.objective import LIKELIHOOD, Objective, alignment_loss

IGNORE = -100
# Logits that are worked on at a time on a CPU: 4 MiB of them in float32.
_PART_LOGITS = 1 << 20


def positions_at_once(device_type: str, vocab_size: int, *, trained: bool) -> int:
    """Positions whose logits are held at once, unless `loss_chunk_tokens` says.

    Each chunk reads the whole output layer and, if that is `trained`, adds to its whole gradient: on a CPU there should
    be some hundred positions, and not more than 16 million logits, twice that for a trained layer.
    """
    most = 1 << (25 if trained and device_type == "cpu" else 24)
    logits = max(1 << 21, min(512 * vocab_size, most)) if device_type == "cpu" else most
    return max(1, logits // max(vocab_size, 1))


@dataclass(frozen=True)
class TokenLoss:
    """Loss of one batch.

    Attributes:
        scaled: Sum over the trained positions times the loss scale, with its gradient (float32 scalar).
        total: The same sum unscaled, label smoothing and further terms included, detached.
        nll: Sum of negative log-likelihoods (without label smoothing), detached.
        correct: Positions where no token is likelier than the label.
        tokens: Trained positions.
        rewards: Under an objective over preferences, the sums that `Totals` has from `judged` on (float64).
        by_corpus_K2: `nll` and `tokens` of each corpus (float64); None = they were not told apart.
    """

    scaled: Tensor
    total: Tensor
    nll: Tensor
    correct: Tensor
    tokens: int
    rewards: Tensor | None = None
    by_corpus_K2: Tensor | None = None


def batch_loss(
    model: Transformer, batch: Batch, *, objective: Objective = LIKELIHOOD, scale: float = 1.0, corpora: int = 0
) -> TokenLoss:
    """Loss of `model` on `batch`, for any of its shapes (language model or encoder-decoder).

    Args:
        model: The model.
        batch: The batch.
        objective: What is minimised.
        scale: Factor on the gradient, for float16.
        corpora: Number of the corpora that are told apart; 0 = none.
    """
    if objective.preference is not None:
        return objective.preference(model, batch, scale, corpora)
    guide = objective.alignment if batch.align_M3 is not None else None
    memory_BSD = None
    if batch.src_BS is not None:
        memory_BSD = model.encode(
            batch.src_BS, batch.src_mask_BS, features_BSF=batch.features_BSF, doc_BS=batch.src_doc_BS
        )
    attention_BTS: Tensor | None = None
    if guide is None:
        hidden_BTD = model.decode(
            batch.tgt_BT, memory_BSD, batch.src_mask_BS, doc_BT=batch.doc_BT, src_doc_BS=batch.src_doc_BS
        )
    else:
        hidden_BTD, attention_BTS = model.decode(
            batch.tgt_BT,
            memory_BSD,
            batch.src_mask_BS,
            doc_BT=batch.doc_BT,
            src_doc_BS=batch.src_doc_BS,
            align=(guide.layer, guide.heads),
            align_mask_BT=batch.labels_BT != IGNORE if guide.full_context else None,
        )
    loss = token_loss(
        hidden_BTD,
        batch.labels_BT,
        model.logits,
        output_parameters(model),
        vocab_size=model.config.vocab_size,
        label_smoothing=objective.label_smoothing,
        prior=None if objective.prior is None else objective.prior(batch),
        scale=scale,
        corpus_P2=batch.corpus_P2 if corpora else None,
        corpora=corpora,
        chunk_tokens=objective.chunk_tokens,
    )
    if guide is None or attention_BTS is None or batch.align_M3 is None:
        return loss
    term = guide.weight * alignment_loss(attention_BTS, batch.align_M3)
    return dataclasses.replace(loss, scaled=loss.scaled + term * scale, total=loss.total + term.detach())


def output_parameters(model: Transformer) -> list[torch.nn.Parameter]:
    """Trainable parameters that `model.logits` uses: the output layer's, or the embedding's where they are tied."""
    modules = [model.lm_head]
    if model.config.tie_embeddings and model.decoder is not None:
        modules.append(model.decoder.embed_tokens)
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def token_loss(
    hidden_BTD: Tensor,
    labels_BT: Tensor,
    head: Callable[[Tensor], Tensor],
    parameters: Sequence[torch.nn.Parameter],
    *,
    vocab_size: int,
    label_smoothing: float = 0.0,
    prior: PriorTerm | None = None,
    scale: float = 1.0,
    corpus_P2: Tensor | None = None,
    corpora: int = 0,
    chunk_tokens: int = 0,
) -> TokenLoss:
    """Cross-entropy of `head(hidden)` summed over the positions whose label is not -100.

    Args:
        hidden_BTD: Output of the last block, normalised.
        labels_BT: Token that follows each position, or -100.
        head: The output layer, (C, D) -> (C, V).
        parameters: What `head` trains; their gradients are found here.
        vocab_size: V, which sets the size of a chunk.
        label_smoothing: Share of the target spread over the vocabulary.
        prior: Further term, of the same positions.
        scale: Factor on the gradient, for float16.
        corpus_P2: That of the batch; None = corpora are not told apart.
        corpora: Their number.
        chunk_tokens: Positions whose logits are held at once; 0 = as the device likes it.
    """
    hidden_ND, labels_N, index_N = _trained(hidden_BTD.flatten(0, 1), labels_BT.flatten())
    corpus_N = None
    if corpus_P2 is not None:
        corpus_N = torch.repeat_interleave(*corpus_P2.unbind(1), output_size=labels_N.numel())
    terms = _Terms(label_smoothing, prior, index_N, corpus_N, corpora)
    chunk = chunk_tokens or positions_at_once(hidden_BTD.device.type, vocab_size, trained=bool(parameters))
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or parameters):
        scaled, total, nll, correct, nll_K = _ChunkedLoss.apply(
            hidden_ND, labels_N, head, terms, scale, chunk, *parameters
        )
    else:
        total, nll, correct, nll_K = _sums(hidden_ND, labels_N, head, terms, chunk)
        scaled = total * scale
    by_corpus_K2 = None
    if corpus_P2 is not None:
        tokens_K = torch.zeros_like(nll_K).index_add(0, corpus_P2[:, 0], corpus_P2[:, 1].double())
        by_corpus_K2 = torch.stack([nll_K, tokens_K], dim=1)
    return TokenLoss(
        scaled=scaled, total=total, nll=nll, correct=correct, tokens=labels_N.numel(), by_corpus_K2=by_corpus_K2
    )


@dataclass(frozen=True)
class _Terms:
    """What is summed for each trained position.

    Attributes:
        smoothing: Share of the target spread over the vocabulary.
        prior: Further term.
        index_N: Flat positions of the trained ones.
        corpus_N: Number of the corpus of each; None = they are not told apart.
        corpora: Number of corpora.
    """

    smoothing: float
    prior: PriorTerm | None
    index_N: Tensor
    corpus_N: Tensor | None
    corpora: int


_Sums = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss, negative log-likelihood and hits, and the negative log-likelihood of each corpus."""


def _trained(hidden_MD: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    index_N = (labels_M != IGNORE).nonzero().squeeze(1)
    if index_N.numel() == labels_M.numel():
        return hidden_MD, labels_M, index_N
    return hidden_MD.index_select(0, index_N), labels_M.index_select(0, index_N), index_N


def _sums(hidden_ND: Tensor, labels_N: Tensor, head: Callable[[Tensor], Tensor], terms: _Terms, chunk: int) -> _Sums:
    sums = _zero_sums(hidden_ND.device, terms.corpora)
    for start in range(0, labels_N.numel(), chunk):
        logits_CV = head(hidden_ND[start : start + chunk])
        if terms.prior is not None:
            sums[0].add_(terms.prior.loss_and_gradient(logits_CV, terms.index_N[start : start + chunk])[0])
        for own, rows in _parts(logits_CV, start):
            _add_part(sums, logits_CV[own].float(), labels_N, rows, terms)
    return sums


def _parts(logits_CV: Tensor, start: int) -> Iterator[tuple[slice, slice]]:
    """Rows of a chunk that are worked on together, counted from its first and from the first of all; few enough on a
    CPU that their float32 logits stay in its caches from pass to pass."""
    count, vocab = logits_CV.shape
    step = max(1, _PART_LOGITS // vocab) if logits_CV.device.type == "cpu" else max(1, count)
    for first in range(0, count, step):
        last = min(first + step, count)
        yield slice(first, last), slice(start + first, start + last)


def _zero_sums(device: torch.device, corpora: int) -> _Sums:
    return (
        torch.zeros((), device=device),
        torch.zeros((), device=device),
        torch.zeros((), dtype=torch.int64, device=device),
        torch.zeros(corpora, dtype=torch.float64, device=device),
    )


def _add_part(sums: _Sums, logits_CV: Tensor, labels_N: Tensor, rows: slice, terms: _Terms) -> Tensor:
    """Add the loss, negative log-likelihood and hits of some rows to `sums`; returns their probabilities, in the place
    of `logits_CV` (float32), which is overwritten pass by pass while the caches hold it."""
    total, nll, correct, nll_K = sums
    smoothing = terms.smoothing
    picked_C1 = logits_CV.gather(1, labels_N[rows].unsqueeze(1))
    top_C1 = logits_CV.amax(-1, keepdim=True)
    mean_C = logits_CV.mean(-1) if smoothing else None
    exp_CV = logits_CV.sub_(top_C1).exp_()
    norm_C1 = exp_CV.sum(-1, keepdim=True)
    log_norm_C1 = norm_C1.log().add_(top_C1)
    nll_C1 = log_norm_C1 - picked_C1
    if terms.corpus_N is not None:
        nll_K.index_add_(0, terms.corpus_N[rows], nll_C1.squeeze(1).double())
    chunk_nll = nll_C1.sum()
    nll += chunk_nll
    total += (1 - smoothing) * chunk_nll
    if mean_C is not None:
        total += smoothing * (log_norm_C1.squeeze(1) - mean_C).sum()
    # equal logits count as a hit
    correct += (picked_C1 >= top_C1).sum()
    return exp_CV.div_(norm_C1)


def _become_gradient(
    logits_CV: Tensor, sums: _Sums, labels_N: Tensor, start: int, terms: _Terms, prior_CV: Tensor | None, scale: float
) -> None:
    """Add one chunk's figures to `sums`, and put d (scale * loss) / d logits in the place of its logits."""
    for own, rows in _parts(logits_CV, start):
        part_CV = logits_CV[own]
        grad_CV = _logits_gradient(
            _add_part(sums, part_CV.float(), labels_N, rows, terms), labels_N[rows], terms.smoothing
        )
        if prior_CV is not None:
            grad_CV.add_(prior_CV[own])
        if scale != 1.0:
            grad_CV.mul_(scale)
        if part_CV.dtype != grad_CV.dtype:  # float32 logits have become it already
            part_CV.copy_(grad_CV)


def _logits_gradient(probs_CV: Tensor, labels_C: Tensor, smoothing: float) -> Tensor:
    """d loss / d logits = softmax - (1 - smoothing) onehot - smoothing / V; overwrites `probs_CV`."""
    if smoothing:
        probs_CV.sub_(smoothing / probs_CV.shape[1])
    return probs_CV.scatter_add_(1, labels_C.unsqueeze(1), probs_CV.new_full((labels_C.numel(), 1), smoothing - 1.0))


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradient together, chunk by chunk; backward only hands out what forward has found."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        labels_N: Tensor,
        head: Callable[[Tensor], Tensor],
        terms: _Terms,
        scale: float,
        chunk: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        sums = _zero_sums(hidden_ND.device, terms.corpora)
        hidden_grad_ND = torch.empty_like(hidden_ND)
        gradients: list[Tensor | None] = [None] * len(parameters)
        for start in range(0, labels_N.numel(), chunk):
            rows = slice(start, start + chunk)
            with torch.enable_grad():
                hidden_CD = hidden_ND[rows].detach().requires_grad_()
                logits_CV = head(hidden_CD)
            prior = None
            if terms.prior is not None:
                term, prior = terms.prior.loss_and_gradient(logits_CV.detach(), terms.index_N[rows])
                sums[0].add_(term)
            # No output layer keeps its result for the backward pass, so that it may be overwritten.
            grad_CV = logits_CV.detach()
            _become_gradient(grad_CV, sums, labels_N, start, terms, prior, scale)
            hidden_grad, *found = torch.autograd.grad(logits_CV, [hidden_CD, *parameters], grad_CV, allow_unused=True)
            hidden_grad_ND[rows] = hidden_grad
            gradients = [_add(old, new) for old, new in zip(gradients, found, strict=True)]
            # Else they would be there beside those of the next chunk.
            del logits_CV, grad_CV, found
        ctx.save_for_backward(hidden_grad_ND, *gradients)
        ctx.mark_non_differentiable(*sums)
        return sums[0] * scale, *sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scaled: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In their place: a second backward pass is told so by autograd, and the output layer's gradient is there once.
        hidden_grad_ND, *gradients = (None if g is None else g.mul_(grad_scaled.to(g.dtype)) for g in ctx.saved_tensors)
        return (hidden_grad_ND, None, None, None, None, None, *gradients)


def _add(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old.add_(new)
