"""int8 matrix products of quantised layers, with int8 weights, inputs and gradients.

They are about twice as fast as bf16 on CPUs with instructions for them (AVX512-VNNI).

Inputs and output gradients get a scale per row (token); weights have one per output (their row). In the forward pass
both scales factor out of the sum. The backward pass sums over the outputs: the gradient is multiplied by their scales
before it is quantised, so it uses the same int8 weight, transposed.

Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onmt_llm.nn.cpu.fused import row_blocks

# Elements of a block of the product that are in int32 and float32 at a time.
_ELEMENTS = 1 << 21
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
        (M, O), exact except for the rounding of x to 127 levels a row.
    """
    return _Int8Linear.apply(x_MI, weight_OI, scale_O, bias_O)


def are_fast(device: torch.device) -> bool:
    """Whether int8 products are known to be faster than 16-bit ones on this device.

    They are on CPUs with instructions for them, but not on those with AMX, where bf16 is as fast and needs no rounding.
    """
    return device.type == "cpu" and torch.cpu._is_vnni_supported() and not torch.cpu._is_amx_tile_supported()


def is_supported(weight_OI: Tensor) -> bool:
    """Whether this weight's device can multiply it in int8."""
    return weight_OI.device.type == "cpu" or all(size % _CUDA_MULTIPLE == 0 for size in weight_OI.shape)


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_O)
        y_MO = x_MI.new_empty(x_MI.shape[0], weight_OI.shape[0])
        for rows in _row_blocks(x_MI, weight_OI.shape[0]):
            copy_MI = _scratch(x_MI[rows].shape, torch.float32, x_MI.device).copy_(x_MI[rows])
            sums_MO, step_M1 = _multiply(copy_MI, weight_OI.t())
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
            copy_MO = _scratch(grad_MO[rows].shape, torch.float32, grad_MO.device).copy_(grad_MO[rows])
            sums_MI, step_M1 = _multiply(copy_MO.mul_(scale_O), weight_OI)
            dx_MI[rows] = sums_MI.mul_(step_M1)
        return dx_MI, None, None, None


def _multiply(x_MK: Tensor, levels_KN: Tensor) -> tuple[Tensor, Tensor]:
    """x, rounded to 127 levels per row, times `levels`.

    Returns the sums (M, N), and the step between the levels of each row (M, 1), by which they must be multiplied. The
    memory of `x` (float32, scratch) is reused for the sums.
    """
    peak_M1 = torch.maximum(x_MK.amax(-1, keepdim=True), -x_MK.amin(-1, keepdim=True))
    # The smallest step keeps a row of zeros from becoming a row of NaN.
    step_M1 = (peak_M1 / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    levels_MK = _scratch(x_MK.shape, torch.int8, x_MK.device).copy_(x_MK.mul_(1 / step_M1).round_())
    shape = torch.Size((x_MK.shape[0], levels_KN.shape[1]))
    sums_MN = torch._int_mm(levels_MK, levels_KN, out=_scratch(shape, torch.int32, x_MK.device))
    return _scratch(shape, torch.float32, x_MK.device).copy_(sums_MN), step_M1


_SCRATCH: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _scratch(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that the next call for this type reuses: allocating it would take longer than the computation."""
    if torch.compiler.is_compiling():
        return torch.empty(shape, dtype=dtype, device=device)
    scratch = _SCRATCH.get((dtype, device))
    if scratch is None or scratch.numel() < shape.numel():
        scratch = _SCRATCH[dtype, device] = torch.empty(shape.numel(), dtype=dtype, device=device)
    return scratch[: shape.numel()].view(shape)


def _row_blocks(x: Tensor, width: int) -> list[slice]:
    if torch.compiler.is_compiling():  # one block, because the number of rows may differ in the next call
        return [slice(None)]
    return row_blocks(x.shape[0], max(width, x.shape[1]), _ELEMENTS)
