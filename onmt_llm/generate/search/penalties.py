"""Coverage penalties of the beam search (Wu et al. 2016, section 7), as OpenNMT-py has them.

Shapes: S = source length; the leading dimensions are free.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def coverage_penalty(kind: str, beta: float) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Penalty of a score for source tokens with too little attention (`wu`) or too much (`summary`).

    Args:
        kind: "none", "wu" or "summary".
        beta: Its weight.

    Returns:
        A function of the sums of attention (..., S) and the mask of real source tokens (..., S); None for "none".
    """
    if kind == "none" or beta == 0:
        return None

    def wu(coverage: Tensor, real: Tensor) -> Tensor:
        # An attention of exactly 0 would be an infinite penalty, and NaN at the next step.
        return -beta * coverage.clamp(min=torch.finfo(coverage.dtype).tiny, max=1.0).log().masked_fill(~real, 0.0).sum(
            dim=-1
        )

    def summary(coverage: Tensor, real: Tensor) -> Tensor:
        return beta * (coverage.clamp(min=1.0) - 1.0).masked_fill(~real, 0.0).sum(dim=-1)

    return wu if kind == "wu" else summary


def real_tokens(lengths: list[int], device: torch.device) -> Tensor:
    """(B, S): True where a source has a token."""
    return torch.arange(max(lengths), device=device)[None] < torch.tensor(lengths, device=device)[:, None]
