"""Round weights to int8 so that a layer's outputs change least on given texts (GPTQ, Frantar et al. 2023).

The columns of a matrix are rounded one after another. The error of each is made up for by the columns that are not
rounded yet, as far as the inputs of the layer are correlated: these are summed up in H = X'X over all tokens.

Shapes: T tokens, C inputs of a layer, R rows of its matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onmt_llm.releasing.int8 import PAIR_LIMIT, int8_scales

_DAMPING = 0.01
_GROUP = 128


class InputStatistics:
    """H (C, C) of a layer's inputs, summed up text by text."""

    def __init__(self) -> None:
        self._sum_CC: Tensor | None = None

    def add(self, x_TC: Tensor) -> None:
        x_TC = x_TC.float()
        if self._sum_CC is None:
            self._sum_CC = torch.zeros(x_TC.shape[1], x_TC.shape[1])
        self._sum_CC.addmm_(x_TC.T, x_TC)

    def factor(self) -> Tensor:
        """Upper triangular U (C, C) with U'U = the inverse of H, whose diagonal is raised by 1% of its mean."""
        assert self._sum_CC is not None
        damped_CC = self._sum_CC.double()
        mean = damped_CC.diagonal().mean()
        damped_CC.diagonal().add_(_DAMPING * mean if mean > 0 else 1.0)
        inverse_CC = torch.cholesky_inverse(torch.linalg.cholesky(damped_CC))
        return torch.linalg.cholesky(inverse_CC, upper=True).float()


def round_rows(weight_RC: Tensor, factor_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in int8 with their scales, as of `int8_rows`.

    Args:
        weight_RC: float32; overwritten.
        factor_CC: `InputStatistics.factor` of the layer's inputs.
    """
    scales_R = int8_scales(weight_RC)
    columns = weight_RC.shape[1]
    rounded_CR = torch.empty(columns, len(weight_RC), dtype=torch.int8)
    rest_CR = weight_RC.mul_(scales_R[:, None]).T.contiguous()  # a column is contiguous
    for start in range(0, columns, _GROUP):
        end = min(start + _GROUP, columns)
        errors_GR = torch.empty(end - start, len(weight_RC))
        for column in range(start, end):
            rounded_R = _rounded(rest_CR[column], rounded_CR[column - 1].float() if column % 2 else None)
            rounded_CR[column] = rounded_R
            error_R = (rest_CR[column] - rounded_R).div_(factor_CC[column, column])
            errors_GR[column - start] = error_R
            rest_CR[column + 1 : end].addr_(factor_CC[column, column + 1 : end], error_R, alpha=-1)
        rest_CR[end:].addmm_(factor_CC[start:end, end:].T, errors_GR, alpha=-1)
    return rounded_CR.T.contiguous(), scales_R


def _rounded(values_R: Tensor, neighbour_R: Tensor | None) -> Tensor:
    """Whole numbers within the room that an already rounded neighbour leaves; see `int8_rows`."""
    rounded_R = values_R.round().clamp_(-127, 127)
    if neighbour_R is None:
        return rounded_R
    return rounded_R.clamp_(neighbour_R.clamp(max=0).neg_() - PAIR_LIMIT, PAIR_LIMIT - neighbour_R.clamp(min=0))
