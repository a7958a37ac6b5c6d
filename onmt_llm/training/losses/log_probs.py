"""Log-probabilities of labels, chunk by chunk: logits of (all positions x V) never exist, forward or backward.

What a preference loss does to each log-probability is known only when all of them are. So the logits of a chunk are
computed twice: forward for the log-probabilities, backward for their gradient.

Shapes: B rows, T positions, N trained positions of the batch, C positions of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onmt_llm.training.losses.cross_entropy import IGNORE, positions_at_once


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of the labels of a batch.

    Attributes:
        total_B: Sum of each row (float32), with its gradient.
        count_B: Trained positions of each row.
        correct_B: Those of them where no token is likelier than the label.
    """

    total_B: Tensor
    count_B: Tensor
    correct_B: Tensor

    @property
    def mean_B(self) -> Tensor:
        """Mean of each row over its trained positions."""
        return self.total_B / self.count_B.clamp(min=1)

    def rows(self, chosen_B: Tensor) -> LogProbs:
        """Those of the rows where `chosen_B` is True."""
        return LogProbs(self.total_B[chosen_B], self.count_B[chosen_B], self.correct_B[chosen_B])


def label_log_probs(
    hidden_BTD: Tensor,
    labels_BT: Tensor,
    head: Callable[[Tensor], Tensor],
    parameters: Sequence[torch.nn.Parameter] = (),
    *,
    vocab_size: int,
    chunk_tokens: int = 0,
) -> LogProbs:
    """log p(label) under softmax(head(hidden)), summed over each row's positions whose label is not -100.

    Args:
        hidden_BTD: Output of the last block, normalised.
        labels_BT: Token that follows each position, or -100.
        head: The output layer, (C, D) -> (C, V).
        parameters: What `head` trains.
        vocab_size: V, which sets the size of a chunk.
        chunk_tokens: Positions whose logits are held at once; 0 = as the device likes it.
    """
    row_N, column_N = (labels_BT != IGNORE).nonzero(as_tuple=True)
    labels_N, hidden_ND = labels_BT[row_N, column_N], hidden_BTD[row_N, column_N]
    chunk = chunk_tokens or positions_at_once(hidden_BTD.device.type, vocab_size, trained=bool(parameters))
    logp_N, correct_N = _ChunkedLogProbs.apply(hidden_ND, labels_N, head, chunk, *parameters)
    ones_N = torch.ones_like(logp_N)
    zero_B = logp_N.new_zeros(len(labels_BT))
    return LogProbs(
        total_B=zero_B.index_add(0, row_N, logp_N),
        count_B=zero_B.index_add(0, row_N, ones_N),
        correct_B=zero_B.index_add(0, row_N, correct_N.float()),
    )


class _ChunkedLogProbs(torch.autograd.Function):
    """Forward: log-probabilities and hits of the labels. Backward: the logits of each chunk again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        labels_N: Tensor,
        head: Callable[[Tensor], Tensor],
        chunk: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        logp_N = torch.empty(len(labels_N), device=hidden_ND.device)
        correct_N = torch.empty(len(labels_N), dtype=torch.bool, device=hidden_ND.device)
        for start in range(0, len(labels_N), chunk):
            rows = slice(start, start + chunk)
            logits_CV = head(hidden_ND[rows]).float()
            picked_C = logits_CV.gather(1, labels_N[rows, None]).squeeze(1)
            logp_N[rows] = picked_C - logits_CV.logsumexp(1)
            correct_N[rows] = picked_C >= logits_CV.amax(1)
        ctx.save_for_backward(hidden_ND, labels_N, *parameters)
        ctx.head, ctx.chunk = head, chunk
        ctx.mark_non_differentiable(correct_N)
        return logp_N, correct_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, labels_N, *parameters = ctx.saved_tensors
        hidden_grad_ND = torch.empty_like(hidden_ND)
        gradients: list[Tensor | None] = [None] * len(parameters)
        for start in range(0, len(labels_N), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            with torch.enable_grad():
                hidden_CD = hidden_ND[rows].detach().requires_grad_()
                logits_CV = ctx.head(hidden_CD)
            # d log p(label) / d logits = onehot - softmax
            grad_CV = logits_CV.detach().float().softmax(1).mul_(-grad_N[rows, None])
            grad_CV.scatter_add_(1, labels_N[rows, None], grad_N[rows, None])
            hidden_grad, *found = torch.autograd.grad(
                logits_CV, [hidden_CD, *parameters], grad_CV.to(logits_CV.dtype), allow_unused=True
            )
            hidden_grad_ND[rows] = hidden_grad
            for number, gradient in enumerate(found):
                old = gradients[number]
                gradients[number] = gradient if old is None or gradient is None else old.add_(gradient)
        return (hidden_grad_ND, None, None, None, *gradients)
