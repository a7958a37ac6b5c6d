"""RMSNorm and SwiGLU with hand-written backward passes, which save fewer tensors than autograd and read less memory.

On a CPU they work on blocks of rows, so that intermediate results stay in the caches. torch.compile achieves the same
by itself and gets the plain operations.

Shapes: M rows (positions), D width of the residual stream, I width of the feed-forward layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a block of rows on a CPU: 2 MiB in float32.
_ELEMENTS = 1 << 19


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32 and rounded once (Zhang & Sennrich 2019).

    Saves its input and one number per row; autograd would save a float32 copy of 16-bit inputs.
    """
    if torch.compiler.is_compiling():
        return F.rms_norm(x, weight_D.shape, weight_D, eps)
    return _RmsNorm.apply(x, weight_D, eps)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, saving only these two (Shazeer 2020)."""
    return F.silu(gate) * up if torch.compiler.is_compiling() else _SiluMul.apply(gate, up)


def row_blocks(rows: int, width: int, elements: int) -> list[slice]:
    """Slices of `rows` rows, each of which covers about `elements` elements of a matrix of this width."""
    step = max(1, elements // width)
    return [slice(start, start + step) for start in range(0, rows, step)]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_MD, dtype = x.reshape(-1, x.shape[-1]), _at_least_float32(x)
        y_MD, inverse_M1 = torch.empty_like(x_MD), x.new_empty(len(x_MD), 1, dtype=dtype)
        scale_D = weight_D.to(dtype)
        for rows in _row_blocks(x_MD):
            normal_MD = x_MD[rows].to(dtype, copy=True)
            inverse_M1[rows] = normal_MD.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            y_MD[rows] = normal_MD.mul_(inverse_M1[rows]).mul_(scale_D)
        ctx.save_for_backward(x_MD, weight_D, inverse_M1)
        return y_MD.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, weight_D, inverse_M1 = ctx.saved_tensors
        grad_MD, dtype = grad.reshape(x_MD.shape), inverse_M1.dtype
        dx_MD, scale_D = torch.empty_like(x_MD), weight_D.to(dtype)
        trained = ctx.needs_input_grad[1]
        dweight_D = torch.zeros_like(scale_D) if trained else None
        for rows in _row_blocks(x_MD):
            normal_MD, g_MD = x_MD[rows].to(dtype) * inverse_M1[rows], grad_MD[rows].to(dtype)
            if dweight_D is not None:
                dweight_D += torch.linalg.vecdot(g_MD, normal_MD, dim=0)
            g_MD = g_MD * scale_D
            along_M1 = torch.linalg.vecdot(g_MD, normal_MD).div_(-x_MD.shape[1]).unsqueeze(1)
            dx_MD[rows] = g_MD.addcmul_(normal_MD, along_M1).mul_(inverse_M1[rows])
        return dx_MD.view(grad.shape), dweight_D if dweight_D is None else dweight_D.to(weight_D.dtype), None


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        gate_MI, up_MI, grad_MI, dgate_MI, dup_MI = (x.view(-1, x.shape[-1]) for x in (gate, up, grad, dgate, dup))
        for rows in _row_blocks(gate_MI):
            torch.mul(grad_MI[rows], F.silu(gate_MI[rows]), out=dup_MI[rows])
            torch.ops.aten.silu_backward.grad_input(
                grad_MI[rows] * up_MI[rows], gate_MI[rows], grad_input=dgate_MI[rows]
            )
        return dgate, dup


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _row_blocks(x: Tensor) -> list[slice]:
    return row_blocks(len(x), x.shape[-1], _ELEMENTS if x.device.type == "cpu" else max(1, x.numel()))
