"""Log-probabilities of labels, chunk by chunk: logits of (all positions x V) never exist, forward or backward.

The gradient of a preference loss by one log-probability depends on all of them. So the logits of a chunk are computed
twice: forward for the log-probabilities, backward for their gradient.

Shapes: B rows, T positions, N trained positions of the batch, C positions of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onmt_llm.training.losses.cross_entropy import IGNORE
from onmt_llm.training.losses.output_layer import OutputLayer


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of the labels of a batch.

    Attributes:
        total_B: Sum over each row (float32), with its gradient.
        count_B: Trained positions of each row.
        correct_B: Trained positions of each row where no token is likelier than the label.
    """

    total_B: Tensor
    count_B: Tensor
    correct_B: Tensor

    @property
    def mean_B(self) -> Tensor:
        """Mean of each row over its trained positions."""
        return self.total_B / self.count_B.clamp(min=1)

    def rows(self, keep_B: Tensor) -> LogProbs:
        """The log-probabilities of the rows where `keep_B` is True."""
        return LogProbs(self.total_B[keep_B], self.count_B[keep_B], self.correct_B[keep_B])


def label_log_probs(hidden_BTD: Tensor, labels_BT: Tensor, output: OutputLayer, *, chunk_tokens: int = 0) -> LogProbs:
    """log p(label) under softmax(output.logits(hidden)), summed over each row's positions whose label is not -100.

    Args:
        hidden_BTD: Output of the last block, normalised.
        labels_BT: Token that follows each position, or -100.
        output: The output layer.
        chunk_tokens: Positions whose logits are in memory together; 0 = the device's default.
    """
    row_N, column_N = (labels_BT != IGNORE).nonzero(as_tuple=True)
    labels_N, hidden_ND = labels_BT[row_N, column_N], hidden_BTD[row_N, column_N]
    chunk = chunk_tokens or output.chunk_tokens(hidden_BTD.device.type)
    logp_N, correct_N = _ChunkedLogProbs.apply(hidden_ND, labels_N, output.logits, chunk, *output.parameters)
    ones_N = torch.ones_like(logp_N)
    zero_B = logp_N.new_zeros(len(labels_BT))
    return LogProbs(
        total_B=zero_B.index_add(0, row_N, logp_N),
        count_B=zero_B.index_add(0, row_N, ones_N),
        correct_B=zero_B.index_add(0, row_N, correct_N.float()),
    )


class _ChunkedLogProbs(torch.autograd.Function):
    """Forward: log-probabilities of the labels, and which are correct. Backward: the logits of each chunk again."""

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
