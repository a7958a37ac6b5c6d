"""Linear layers for inference: several joined to one, and weights packed for kernels that read 16 or 8 bits per weight.

On x86 torch contains the kernels: FBGEMM's compute in float32 on every processor, oneDNN's in bf16 where the processor
has instructions for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from onmt_llm.nn.quantized import Int8Linear

_LEVELS = 63
"""Inputs are rounded to -63 ... 63: in seven bits two products fit into the 16 bits in which AVX2 adds them."""
_ZERO = 64
_REST = 126
"""What the rest of a rounded input, up to 1/2, is multiplied by before it is rounded in turn."""
_GROUP = 32
"""Inputs whose 4-bit weights share a scale."""
_float16_product = torch.ops.quantized.linear_dynamic_fp16.default
_int8_product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
_HALF_MAX = torch.finfo(torch.float16).max


def is_joinable(layers: Sequence[nn.Module | None]) -> bool:
    """Whether `joined` can make one layer of these."""
    kinds = {(type(layer), getattr(layer, "bias", None) is None) for layer in layers}
    return len(kinds) == 1 and kinds.pop()[0] in (nn.Linear, Int8Linear)


def joined(layers: Sequence[Any]) -> nn.Module:
    """One layer whose output is that of `layers` side by side. It takes their weights, which are in memory once."""
    first = layers[0]
    bias = None if first.bias is None else torch.cat([layer.bias.detach() for layer in layers])
    weight = torch.cat([layer.weight.detach() for layer in layers])
    scale = torch.cat([layer.scale for layer in layers]) if isinstance(first, Int8Linear) else None
    for layer in layers:
        del layer.weight
    return linear(weight, bias) if scale is None else Int8Linear.of_quantized(weight, scale, bias)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A `nn.Linear` with this (out, in) weight, which is not copied."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def has_packed_kernels() -> bool:
    """Whether this build of torch contains FBGEMM."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def has_bf16_kernels() -> bool:
    """Whether `PackedBf16Linear` and `Packed4Linear` can be used: by this processor and this build of torch."""
    if not torch.cpu._is_avx512_bf16_supported() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # ONEDNN_MAX_CPU_ISA may forbid it


class PackedBf16Linear(nn.Module):
    """y = x W' + b in bf16, with W in the order in which oneDNN reads it. torch's own `linear` orders it at each call.

    Args:
        weight: (out, in), bf16.
        bias: (out,), bf16, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), bf16."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Packed4Linear(nn.Module):
    """y = x W' + b in bf16, with W in 4 bits: each 32 weights of a row have a scale and an offset of their own.

    Args:
        weight: (out, in), `is_packable_to_4_bits`.
        bias: (out,), bf16, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        w_OGI = weight.detach().float().unflatten(1, (-1, _GROUP))
        low_OG1, high_OG1 = w_OGI.aminmax(dim=-1, keepdim=True)
        # The kernel computes (level - 8) * scale + offset, with both in bf16.
        scale_OG1 = ((high_OG1 - low_OG1) / 15).clamp(min=1e-30).bfloat16()
        offset_OG1 = (low_OG1 + 8 * scale_OG1).bfloat16()
        levels_OGI = ((w_OGI - offset_OG1.float()) / scale_OG1.float() + 8).round_().clamp_(0, 15)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels_OGI.flatten(1).int(), 1)
        self._scales = torch.stack((scale_OG1, offset_OG1), dim=-1).squeeze(2).transpose(0, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), bf16."""
        x_MX = x.reshape(-1, self.in_features)
        y_MO = torch.ops.aten._weight_int4pack_mm_for_cpu(x_MX, self._packed, _GROUP, self._scales)
        if self.bias is not None:
            y_MO += self.bias
        return y_MO.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def is_packable_to_4_bits(layer: nn.Module) -> bool:
    """Whether `Packed4Linear` can replace a layer: a linear layer in bf16 with sizes that the kernel takes."""
    if type(layer) is not nn.Linear or layer.weight.dtype != torch.bfloat16:
        return False
    return layer.in_features % _GROUP == 0 and layer.out_features % 64 == 0


class Packed16Linear(nn.Module):
    """y = x W' + b in float32, with W stored in float16.

    Weights in bf16 keep their value (those below 1e-5 within 3e-8): float16 has more digits, and less range.

    Args:
        weight: (out, in), within the range of float16.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        with _fbgemm():
            self._packed = torch.ops.quantized.linear_prepack_fp16(
                weight.detach().float(), None if bias is None else bias.detach().float()
            )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), float32."""
        return _float16_product(x, self._packed)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Packed8Linear(nn.Module):
    """y = x W' + b in float32, with W in int8 and one scale per output row.

    Each row of x is split into two numbers of 7 bits per element: the rounded value and its rest. Their products are
    two rows of one product of integers, which takes the time of one, since it takes the time of reading W. So the
    result is almost as exact as with float32 inputs, and no row depends on others.

    Args:
        weight: (out, in), int8.
        scale: (out,), float32.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        # An operation with a number makes a tensor of it each time; so these are tensors.
        self._tiny = torch.tensor(1e-30)
        self._steps_211 = torch.tensor((1 / _LEVELS, 1 / _LEVELS / _REST)).view(2, 1, 1)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with _fbgemm():
            quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), float32."""
        x_MX = x.reshape(-1, self.in_features)
        peak_M1 = x_MX.abs().amax(dim=-1, keepdim=True)
        scale_2M1 = torch.addcmul(self._tiny, peak_M1, self._steps_211)
        parts_2MX = x_MX / scale_2M1
        first_MX, second_MX = parts_2MX.unbind(0)
        second_MX.sub_(first_MX.round_(), alpha=_REST)
        y_MO = _int8_product(parts_2MX, 1.0, _ZERO, self._packed).mul_(scale_2M1).sum(dim=0)
        if self.bias is not None:
            y_MO += self.bias
        return y_MO.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def packed(layer: nn.Module, *, in_bf16: bool = False) -> nn.Module:
    """The packed form of a linear layer with weights of 8 or 16 bits, which loses its weight; any other module as it
    is. It computes in float32, if not `in_bf16`; then 16-bit weights beyond the range of float16 become float32."""
    if in_bf16 and type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16:
        new: nn.Module = PackedBf16Linear(layer.weight, layer.bias)
    elif type(layer) is Int8Linear:
        new = Packed8Linear(layer.weight, layer.scale, layer.bias)
    elif type(layer) is nn.Linear and layer.weight.dtype in (torch.bfloat16, torch.float16):
        in_range = bool(layer.weight.abs().amax() <= _HALF_MAX)
        new = (Packed16Linear if in_range else _float32)(layer.weight, layer.bias)
    else:
        return layer
    del layer.weight
    return new


def _float32(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    return linear(weight.float(), bias)


@contextmanager
def _fbgemm() -> Iterator[None]:
    """A context in which torch packs weights for FBGEMM, without its warning that the types of quantised tensors (not
    these kernels) will be removed."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions", category=UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = engine
