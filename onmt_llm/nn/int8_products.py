"""Products of quantised layers in int8: weights, inputs and gradients alike, at about twice the speed of bf16 on CPUs
that have instructions for it (AVX512-VNNI).

Inputs and output gradients get a scale for each row, i.e. token; weights have one for each output (their row). Forward,
both scales factor out of the sum. Backward, the sum is over the outputs: their scales go into the gradient before that
is quantised, so that the same int8 weight serves, read the other way round.

Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a product that are held in int32 and float32 at a time.
_ELEMENTS = 1 << 22
# CUDA's kernel takes sizes in multiples of this.
_CUDA_MULTIPLE = 8


def int8_linear(x_MI: Tensor, weight_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """x (weight * scale)' + bias, with a gradient for x alone.

    Args:
        x_MI: Input, of any floating type; the result has the same.
        weight_OI: int8.
        scale_O: float32.
        bias_O: Of the type of x.

    Returns:
        (M, O), exact but for the rounding of x to 127 levels a row.
    """
    return _Int8Linear.apply(x_MI, weight_OI, scale_O, bias_O)


def are_fast(device: torch.device) -> bool:
    """Whether int8 products are known to beat those in 16 bits on this device."""
    return device.type == "cpu" and bool(torch.cpu._is_vnni_supported())


def fit(weight_OI: Tensor) -> bool:
    """Whether the device of this weight can multiply it in int8."""
    return weight_OI.device.type == "cpu" or all(size % _CUDA_MULTIPLE == 0 for size in weight_OI.shape)


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_O)
        y_MO = x_MI.new_empty(x_MI.shape[0], weight_OI.shape[0])
        for rows in _row_blocks(x_MI, weight_OI.shape[0]):
            levels_MI, step_M1 = _quantize_tokens(x_MI[rows].to(torch.float32, copy=True))
            sums_MO = torch._int_mm(levels_MI, weight_OI.t()).float()
            y_MO[rows] = sums_MO.mul_(step_M1).mul_(scale_O)
        return y_MO if bias_O is None else y_MO.add_(bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight_OI, scale_O = ctx.saved_tensors
        dx_MI = grad_MO.new_empty(grad_MO.shape[0], weight_OI.shape[1])
        for rows in _row_blocks(grad_MO, weight_OI.shape[1]):
            levels_MO, step_M1 = _quantize_tokens(grad_MO[rows].float() * scale_O)
            dx_MI[rows] = torch._int_mm(levels_MO, weight_OI).float().mul_(step_M1)
        return dx_MI, None, None, None


def _quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 levels of each row and the step between them (M, 1); overwrites `x` (float32)."""
    # The smallest step keeps a row of zeros from becoming a row of NaN.
    peak_M1 = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    step_M1 = (peak_M1 / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    return x.mul_(1 / step_M1).round_().to(torch.int8), step_M1


def _row_blocks(x: Tensor, width: int) -> list[slice]:
    step = max(1, _ELEMENTS // max(width, x.shape[1]))
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]
