"""Cross-entropy, summed over the trained positions, computed chunk by chunk through the output layer.

The gradient of a chunk is computed while its logits are in memory. So neither (all positions x V) logits nor a second
pass through the output layer is ever needed.

Label smoothing is that of torch and OpenNMT-py: (1 - s) nll - s mean_v log p_v, a mixture over the whole vocabulary,
special tokens and padding rows included; up to a constant it is the divergence from the smoothed target. Positions
without a label are not smoothed. The reported perplexity is that of the likelihood alone (OpenNMT-py's is smoothed).

Shapes: B batch, T positions, N trained positions of the batch, C positions of a chunk, D width, V vocabulary,
    P examples or parts of them, K corpora.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onmt_llm.training.losses.output_layer import OutputLayer
from onmt_llm.training.losses.terms import BatchTerm
from onmt_llm.training.losses.token_loss import TokenLoss

IGNORE = -100
# Logits that a CPU processes at a time: 4 MiB of them in float32.
_PART_LOGITS = 1 << 20


@dataclass(frozen=True)
class CorpusSpans:
    """Which corpus each trained position of a batch belongs to.

    Attributes:
        corpus_P2: Number of the corpus, and trained positions, of each example or part, in order.
        count: Number of corpora.
    """

    corpus_P2: Tensor
    count: int


def token_loss(
    hidden_BTD: Tensor,
    labels_BT: Tensor,
    output: OutputLayer,
    *,
    label_smoothing: float = 0.0,
    terms: Sequence[BatchTerm] = (),
    scale: float = 1.0,
    corpora: CorpusSpans | None = None,
    chunk_tokens: int = 0,
) -> TokenLoss:
    """Cross-entropy of `output.logits(hidden)` summed over the positions whose label is not -100.

    Args:
        hidden_BTD: Output of the last block, normalised.
        labels_BT: Token that follows each position, or -100.
        output: The output layer; the gradients of its parameters are computed here.
        label_smoothing: Share of the target spread over the vocabulary.
        terms: Other terms over the same positions.
        scale: Factor of the gradient, for float16.
        corpora: The corpus of each position; None = corpora are not separated.
        chunk_tokens: Positions whose logits are in memory together; 0 = the device's default.
    """
    hidden_ND, labels_N, index_N = _trained(hidden_BTD.flatten(0, 1), labels_BT.flatten())
    corpus_N = None
    if corpora is not None:
        corpus_N = torch.repeat_interleave(*corpora.corpus_P2.unbind(1), output_size=labels_N.numel())
    summed = _LossTerms(label_smoothing, terms, index_N, corpus_N, 0 if corpora is None else corpora.count)
    chunk = chunk_tokens or output.chunk_tokens(hidden_BTD.device.type)
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or output.parameters):
        scaled, total, nll, correct, nll_K = _ChunkedLoss.apply(
            hidden_ND, labels_N, output.logits, summed, scale, chunk, *output.parameters
        )
    else:
        total, nll, correct, nll_K = _sums(hidden_ND, labels_N, output.logits, summed, chunk)
        scaled = total * scale
    by_corpus_K2 = None
    if corpora is not None:
        corpus_P, tokens_P = corpora.corpus_P2.unbind(1)
        tokens_K = torch.zeros_like(nll_K).index_add(0, corpus_P, tokens_P.double())
        by_corpus_K2 = torch.stack([nll_K, tokens_K], dim=1)
    return TokenLoss(
        scaled=scaled, total=total, nll=nll, correct=correct, tokens=labels_N.numel(), by_corpus_K2=by_corpus_K2
    )


@dataclass(frozen=True)
class _LossTerms:
    """What is summed over the trained positions.

    Attributes:
        smoothing: Share of the target spread over the vocabulary.
        others: Other terms over the same positions.
        index_N: Flat indices of the trained positions.
        corpus_N: Number of the corpus of each; None = corpora are not separated.
        corpora: Number of corpora.
    """

    smoothing: float
    others: Sequence[BatchTerm]
    index_N: Tensor
    corpus_N: Tensor | None
    corpora: int


_Sums = tuple[Tensor, Tensor, Tensor, Tensor]
"""Loss, negative log-likelihood and correct positions; the negative log-likelihood of each corpus."""


def _trained(hidden_MD: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    index_N = (labels_M != IGNORE).nonzero().squeeze(1)
    if index_N.numel() == labels_M.numel():
        return hidden_MD, labels_M, index_N
    return hidden_MD.index_select(0, index_N), labels_M.index_select(0, index_N), index_N


def _sums(
    hidden_ND: Tensor, labels_N: Tensor, head: Callable[[Tensor], Tensor], terms: _LossTerms, chunk: int
) -> _Sums:
    sums = _zero_sums(hidden_ND.device, terms.corpora)
    for start in range(0, labels_N.numel(), chunk):
        logits_CV = head(hidden_ND[start : start + chunk])
        for other in terms.others:
            sums[0].add_(other.loss_and_gradient(logits_CV, terms.index_N[start : start + chunk])[0])
        for own, rows in _parts(logits_CV, start):
            _add_part(sums, logits_CV[own].float(), labels_N, rows, terms)
    return sums


def _parts(logits_CV: Tensor, start: int) -> Iterator[tuple[slice, slice]]:
    """Rows of a chunk that are processed together, counted from the chunk's first row and from the first of all; on a
    CPU so few that their float32 logits stay in its caches from pass to pass."""
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


def _add_part(sums: _Sums, logits_CV: Tensor, labels_N: Tensor, rows: slice, terms: _LossTerms) -> Tensor:
    """Add the loss, negative log-likelihood and correct positions of some rows to `sums`; returns their probabilities
    in place of `logits_CV` (float32), which is overwritten pass by pass while the caches hold it."""
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
    # Equal logits count as correct.
    correct += (picked_C1 >= top_C1).sum()
    return exp_CV.div_(norm_C1)


def _logits_to_gradient(
    logits_CV: Tensor,
    sums: _Sums,
    labels_N: Tensor,
    start: int,
    terms: _LossTerms,
    others: Sequence[Tensor],
    scale: float,
) -> None:
    """Add the sums of one chunk to `sums`, and replace its logits by d (scale * loss) / d logits."""
    for own, rows in _parts(logits_CV, start):
        part_CV = logits_CV[own]
        grad_CV = _logits_gradient(
            _add_part(sums, part_CV.float(), labels_N, rows, terms), labels_N[rows], terms.smoothing
        )
        for other_CV in others:
            grad_CV.add_(other_CV[own])
        if scale != 1.0:
            grad_CV.mul_(scale)
        if part_CV.dtype != grad_CV.dtype:  # float32 logits hold it already
            part_CV.copy_(grad_CV)


def _logits_gradient(probs_CV: Tensor, labels_C: Tensor, smoothing: float) -> Tensor:
    """d loss / d logits = softmax - (1 - smoothing) onehot - smoothing / V; overwrites `probs_CV`."""
    if smoothing:
        probs_CV.sub_(smoothing / probs_CV.shape[1])
    return probs_CV.scatter_add_(1, labels_C.unsqueeze(1), probs_CV.new_full((labels_C.numel(), 1), smoothing - 1.0))


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradient together, chunk by chunk; backward only returns the gradients computed by forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        labels_N: Tensor,
        head: Callable[[Tensor], Tensor],
        terms: _LossTerms,
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
            others = []
            for other in terms.others:
                term, gradient_CV = other.loss_and_gradient(logits_CV.detach(), terms.index_N[rows])
                sums[0].add_(term)
                others.append(gradient_CV)
            # No output layer saves its result for the backward pass, so it may be overwritten.
            grad_CV = logits_CV.detach()
            _logits_to_gradient(grad_CV, sums, labels_N, start, terms, others, scale)
            hidden_grad, *found = torch.autograd.grad(logits_CV, [hidden_CD, *parameters], grad_CV, allow_unused=True)
            hidden_grad_ND[rows] = hidden_grad
            gradients = [_add(old, new) for old, new in zip(gradients, found, strict=True)]
            # Otherwise they would be in memory together with those of the next chunk.
            del logits_CV, grad_CV, found
        ctx.save_for_backward(hidden_grad_ND, *gradients)
        ctx.mark_non_differentiable(*sums)
        return sums[0] * scale, *sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scaled: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In place: autograd then refuses a second backward pass, and the output layer's gradient exists once.
        hidden_grad_ND, *gradients = (None if g is None else g.mul_(grad_scaled.to(g.dtype)) for g in ctx.saved_tensors)
        return (hidden_grad_ND, None, None, None, None, None, *gradients)


def _add(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old.add_(new)
