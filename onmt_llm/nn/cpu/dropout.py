"""Dropout that needs little time and memory on a CPU.

On a CPU torch draws each element separately and saves a float32 factor for it: a quarter of the training time and
memory of a small Transformer. Here 16 random bits decide on an element; a 64-bit draw of torch's generator gives four
of these (so runs resume exactly). Only these two bytes are saved, or nothing if the result itself shows what was
dropped. On other devices torch's kernels are used.

Shapes of attention: B rows, N heads, K key heads, T queries, S keys, H width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEVELS = 1 << 16
_LOWEST = -(1 << 15)


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero elements with probability `rate`, and scale the others to preserve the expectation."""
    if not training or rate <= 0.0:
        return x
    return _Dropout.apply(x, rate) if x.device.type == "cpu" else F.dropout(x, rate)


def dropout_add(x: Tensor, y: Tensor, rate: float, training: bool) -> Tensor:
    """x + dropout(y): the end of a residual branch."""
    if not training or rate <= 0.0:
        return x + y
    return _DropoutAdd.apply(x, y, rate) if x.device.type == "cpu" else x + F.dropout(y, rate)


def relu_dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """dropout(relu(x))."""
    if not training or rate <= 0.0:
        return F.relu(x)
    return _ReluDropout.apply(x, rate) if x.device.type == "cpu" else F.dropout(F.relu(x), rate)


def attend_with_dropout(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, bias: Tensor | None, scale: float, rate: float
) -> Tensor:
    """dropout(softmax(scale q k' + bias)) v on a CPU, each group of N / K query heads sharing a key head.

    torch has no kernel for it there. Its plain operations save the weights twice, with and without dropout, and copy q,
    k and v to make each head contiguous; here the heads are processed one by one, without copies.

    Args:
        q_BNTH: Queries.
        k_BKSH: Keys.
        v_BKSH: Values.
        bias: Float; broadcasts to (B, N, T, S) and gets no gradient.
        scale: Of the scores.
        rate: Fraction of the weights that is dropped.

    Returns:
        (B, N, T, H), with the memory layout of the queries.
    """
    return _AttendWithDropout.apply(q_BNTH, k_BKSH, v_BKSH, bias, scale, rate)


@dataclass(frozen=True)
class _Draw:
    """The random decision for each element of a tensor.

    Attributes:
        bits: 16 random bits per element.
        first: Numbers from this one on keep the element.
        factor: Factor of kept elements.
    """

    bits: Tensor
    first: int
    factor: float

    def ones(self, dtype: torch.dtype) -> Tensor:
        """1 for kept elements, 0 for dropped ones: multiplying by a number is faster than by a boolean."""
        return torch.ge(self.bits, self.first, out=torch.empty(self.bits.shape, dtype=dtype))


def _draw(x: Tensor, rate: float) -> _Draw:
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    return _Draw(bits.view(torch.int16)[: x.numel()].view(x.shape), dropped + _LOWEST, _LEVELS / (_LEVELS - dropped))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        draw = _keep(ctx, _draw(x, rate))
        return draw.ones(x.dtype).mul_(x).mul_(draw.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _backward(ctx, grad), None


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rate: float) -> Tensor:
        draw = _keep(ctx, _draw(y, rate))
        return torch.add(x, draw.ones(y.dtype).mul_(y), alpha=draw.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, _backward(ctx, grad), None


class _ReluDropout(torch.autograd.Function):
    """Saves only its result, which the next layer saves anyway: elements above zero pass the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        draw = _draw(x, rate)
        y = draw.ones(x.dtype).mul_(x).relu_().mul_(draw.factor)
        ctx.factor = draw.factor
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.factor), None


class _AttendWithDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BNTH: Tensor,
        k_BKSH: Tensor,
        v_BKSH: Tensor,
        bias: Tensor | None,
        scale: float,
        rate: float,
    ) -> Tensor:
        batch, heads, length, _ = q_BNTH.shape
        group = heads // k_BKSH.shape[1]
        q_BNTH = q_BNTH * scale
        weights_NBTS = q_BNTH.new_empty(heads, batch, length, k_BKSH.shape[2])
        for n in range(heads):
            torch.bmm(q_BNTH[:, n], k_BKSH[:, n // group].mT, out=weights_NBTS[n])
        if bias is not None:
            weights_NBTS += bias.transpose(0, 1)
        torch.softmax(weights_NBTS, -1, out=weights_NBTS)
        draw = _draw(weights_NBTS, rate)
        kept_NBTS = draw.ones(weights_NBTS.dtype).mul_(weights_NBTS)
        out_BNTH = torch.empty_like(q_BNTH)
        for n in range(heads):
            torch.bmm(kept_NBTS[n], v_BKSH[:, n // group], out=out_BNTH[:, n])
        ctx.save_for_backward(q_BNTH, k_BKSH, v_BKSH, weights_NBTS, draw.bits)
        ctx.first, ctx.factor, ctx.scale, ctx.group = draw.first, draw.factor, scale, group
        return out_BNTH.mul_(draw.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNTH: Tensor) -> tuple[Tensor | None, ...]:
        q_BNTH, k_BKSH, v_BKSH, weights_NBTS, bits = ctx.saved_tensors
        group = ctx.group
        grad_BNTH = grad_BNTH * ctx.factor
        ones_NBTS = _Draw(bits, ctx.first, ctx.factor).ones(grad_BNTH.dtype)
        kept_NBTS = ones_NBTS * weights_NBTS
        grads_NBTS = torch.empty_like(weights_NBTS)
        dq_BNTH, dk_BKSH, dv_BKSH = torch.empty_like(q_BNTH), torch.empty_like(k_BKSH), torch.empty_like(v_BKSH)
        for n in range(q_BNTH.shape[1]):
            k, old = n // group, float(n % group > 0)
            dv_BKSH[:, k].baddbmm_(kept_NBTS[n].mT, grad_BNTH[:, n], beta=old)
            torch.bmm(grad_BNTH[:, n], v_BKSH[:, k].mT, out=grads_NBTS[n])
        grads_NBTS = torch._softmax_backward_data(grads_NBTS.mul_(ones_NBTS), weights_NBTS, -1, weights_NBTS.dtype)
        for n in range(q_BNTH.shape[1]):
            k, old = n // group, float(n % group > 0)
            torch.bmm(grads_NBTS[n], k_BKSH[:, k], out=dq_BNTH[:, n])
            dk_BKSH[:, k].baddbmm_(grads_NBTS[n].mT, q_BNTH[:, n], beta=old)
        return dq_BNTH.mul_(ctx.scale), dk_BKSH, dv_BKSH, None, None, None


def _keep(ctx: Any, draw: _Draw) -> _Draw:
    ctx.save_for_backward(draw.bits)
    ctx.first, ctx.factor = draw.first, draw.factor
    return draw


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    (bits,) = ctx.saved_tensors
    return _Draw(bits, ctx.first, ctx.factor).ones(grad.dtype).mul_(grad).mul_(ctx.factor)
