"""Frozen linear layers with 8-bit or 4-bit weights: gradients flow to the input, never to the weight.

`QUANT_TYPES` is the table of formats. `int8` needs only torch; the `bnb_*` formats are those of the package
bitsandbytes, which runs on CPU too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.nn import wrap
from onmt_llm.nn.cpu import int8_matmul
from onmt_llm.nn.cpu.fused import row_blocks
from onmt_llm.nn.cpu.int8_matmul import int8_linear
from onmt_llm.optional import require
from onmt_llm.registry import Registry

# Elements of the weight that are dequantised at a time: 16 MiB of them in bf16, 32 MiB in float32.
_BLOCK_ELEMENTS = 1 << 23
# Rows of a 4-bit weight that bitsandbytes processes together.
_BNB_CPU_ROWS = 32
# Up to this many rows of input the int8 kernel is faster than dequantising first (five times for one row).
_PACKED_ROWS = 32


class Int8Linear(nn.Module):
    """y = x W' + b with W stored as int8 and one float32 scale per output row (symmetric, about 0.4% error).

    Forward and backward dequantise one block of rows at a time into the type of x, so activations stay exact and the
    weight is never copied as a whole. With `int8_products` a layer in training quantises its input too and multiplies
    in int8 (`int8_matmul.py`).

    Args:
        weight: (out, in) of any floating type.
        bias: (out,) or None; not quantised.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._set(*quantize_rows(weight.detach()), bias)

    @classmethod
    def of_quantized(cls, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Int8Linear:
        """The layer with this (out, in) int8 weight and (out,) scale; bias as in the constructor."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._set(weight, scale, bias)
        return layer

    @classmethod
    def without_values(cls, linear: nn.Linear) -> Int8Linear:
        """The layer of a linear one on the meta device."""
        weight = linear.weight.detach()
        return cls.of_quantized(weight.to(torch.int8), weight.new_empty(len(weight), dtype=torch.float32), linear.bias)

    def _set(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        # Frozen parameters and not buffers, so that several processes can shard them like all weights.
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.int8_products = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the type of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        rows = x.flatten(0, -2)
        if self.int8_products and self.training and len(rows) > _PACKED_ROWS:
            y = int8_linear(rows, self.weight, self.scale, bias)
        elif not torch.is_grad_enabled() and _has_packed_kernel(x) and len(rows) <= _PACKED_ROWS:
            y = torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale.to(x.dtype))
            y = y if bias is None else y + bias
        else:
            y = _Int8Matmul.apply(rows, self.weight, self.scale, bias)
        return y.unflatten(0, x.shape[:-1])

    def dequantize(self) -> Tensor:
        """The (out, in) weight in float32."""
        return self.weight * self.scale[:, None]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Follow `.to(device)`, but keep the scales in float32 under `.to(dtype)`."""
        super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:
            self.scale.data = self.scale.data.float()
        return self


def _has_packed_kernel(x: Tensor) -> bool:
    # In float32 the same kernel exists, but is far slower than dequantising.
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 weight (out, in) and float32 scale (out,) such that weight is about int8 * scale.

    Scales are rounded to bf16, so a kernel that takes them in bf16 adds no error.
    """
    peak = weight.abs().amax(dim=1).float()
    scale = torch.where(peak > 0, peak / 127, 1.0).bfloat16().float()
    quantized = torch.empty_like(weight, dtype=torch.int8)
    for rows in _row_blocks(weight):
        scaled = weight[rows].float() / scale[rows, None]
        quantized[rows] = scaled.round_().clamp_(-127, 127).to(torch.int8)
    return quantized, scale


class _Int8Matmul(torch.autograd.Function):
    """x (M, in) times a dequantised (out, in) weight; saves only the int8 weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        blocks = _row_blocks(weight)
        if len(blocks) == 1:
            return F.linear(x, _dequantize(weight, scale, x.dtype), bias)
        y = x.new_empty(x.shape[0], weight.shape[0])
        for rows in blocks:
            block = _dequantize(weight[rows], scale[rows], x.dtype)
            y[:, rows] = F.linear(x, block, None if bias is None else bias[rows])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight, scale = ctx.saved_tensors
        blocks = _row_blocks(weight)
        grad_x = grad[:, blocks[0]] @ _dequantize(weight[blocks[0]], scale[blocks[0]], grad.dtype)
        for rows in blocks[1:]:
            grad_x.addmm_(grad[:, rows], _dequantize(weight[rows], scale[rows], grad.dtype))
        return grad_x, None, None, None


def _dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).mul_(scale.to(dtype)[:, None])


def _row_blocks(weight: Tensor) -> list[slice]:
    return row_blocks(weight.shape[0], weight.shape[1], _BLOCK_ELEMENTS)


def _int8(linear: nn.Linear) -> nn.Module:
    return Int8Linear(linear.weight, linear.bias)


def _bnb_8bit(linear: nn.Linear) -> nn.Module:
    bnb = _bitsandbytes("bnb_8bit")
    with torch.device("meta"):
        new = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
        )
    # bitsandbytes quantises to 8 bits when a weight moves from the CPU.
    new.weight = bnb.nn.Int8Params(linear.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False)
    return _quantize_now(new, linear)


def _bnb_4bit(linear: nn.Linear, *, kind: str) -> nn.Module:
    bnb = _bitsandbytes(f"bnb_{kind.upper()}")
    dtype = linear.weight.dtype
    with torch.device("meta"):
        new = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype, quant_type=kind
        )
    new.weight = bnb.nn.Params4bit(linear.weight.detach(), requires_grad=False, quant_type=kind, module=new)
    # In eval mode its kernel for CPUs with bf16 processes the rows in blocks, and fails for a partial block.
    new.support_avx512bf16_for_cpu &= linear.out_features % _BNB_CPU_ROWS == 0
    return _quantize_now(new, linear)


def _quantize_now(new: nn.Module, linear: nn.Linear) -> nn.Module:
    """Move the weight to its device, which makes bitsandbytes quantise it."""
    if linear.bias is not None:
        new.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return new.to(linear.weight.device)


def _bitsandbytes(quant_type: str) -> Any:
    # bitsandbytes warns of a missing optional CPU accelerator, which it works without, and that its 8-bit product casts
    # to float16, which it always does.
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).addFilter(_is_relevant)
    return require("bitsandbytes", f"quant_type: {quant_type}")


def _is_relevant(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in ("kernels", "inputs will be cast"))


@dataclass(frozen=True)
class QuantType:
    """A number format of quantised layers.

    Attributes:
        build: Makes the quantised layer of a linear one.
        weight_bytes: Bytes per weight, scales included.
    """

    build: Callable[[nn.Linear], nn.Module]
    weight_bytes: float


QUANT_TYPES: Registry[QuantType] = Registry("quant_type")
QUANT_TYPES.register("int8")(QuantType(_int8, 1.0))
QUANT_TYPES.register("bnb_8bit")(QuantType(_bnb_8bit, 1.0))
QUANT_TYPES.register("bnb_NF4")(QuantType(partial(_bnb_4bit, kind="nf4"), 0.5625))
QUANT_TYPES.register("bnb_FP4")(QuantType(partial(_bnb_4bit, kind="fp4"), 0.5625))


def quantize(model: nn.Module, names: Sequence[str], quant_type: str) -> list[str]:
    """Quantise the named linear layers in place, one at a time; each full-precision weight is freed at once.

    Args:
        model: With its weights loaded (a model on the meta device cannot be quantised).
        names: Layer names as in `wrap.match`. A full path quantises a single layer, for loading one by one.
        quant_type: One of QUANT_TYPES.

    Returns:
        Dotted paths of the quantised layers.

    Raises:
        ConfigError: An unknown type, a name that matches nothing, or a layer that is not a plain linear one.
        UnsupportedError: The type needs a package that is missing.
    """
    build = QUANT_TYPES.get(quant_type).build

    def factory(module: nn.Module, path: str) -> nn.Module:
        new = build(module)  # type: ignore[arg-type]
        # Other references to the old layer (a list of modules being iterated) must not keep its memory.
        del module.weight
        return new

    for path in wrap.match(model, names):
        _check_linear(model.get_submodule(path), path)
    return wrap.replace(model, names, factory)


def set_int8_products(model: nn.Module) -> int:
    """Make int8 layers multiply in int8 in training, if their device supports it; returns their number."""
    layers = [m for m in model.modules() if isinstance(m, Int8Linear) and int8_matmul.is_supported(m.weight)]
    for layer in layers:
        layer.int8_products = True
    return len(layers)


def _check_linear(module: nn.Module, path: str) -> None:
    if type(module) is not nn.Linear:
        raise ConfigError(
            f"A quantised layer must be a plain linear layer, but '{path}' is a {type(module).__name__}.",
            hint="quantise before LoRA; embeddings, and an lm_head tied to one, stay in full precision",
        )
    if module.weight.is_meta:
        raise ConfigError(f"'{path}' must hold its weights before it is quantised, but is on the meta device.")


def linear_weight(module: nn.Module) -> Tensor:
    """The (out, in) weight of a linear layer; dequantised, in float32, if it is quantised.

    Raises:
        UnsupportedError: The module is not a linear layer.
    """
    if isinstance(module, Int8Linear):
        return module.dequantize()
    kind = type(module).__name__
    if kind == "Linear8bitLt":
        quantized: Any = module
        peaks = quantized.weight.SCB if quantized.state.SCB is None else quantized.state.SCB
        return quantized.weight.data.float() * (peaks.float() / 127)[:, None]
    if kind == "Linear4bit":
        module.state_dict()  # undoes the repacking of its CPU kernels in eval mode
        functional = require("bitsandbytes.functional", "reading 4-bit weights", "bitsandbytes")
        return functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()  # type: ignore[union-attr]
    if isinstance(module, nn.Linear):
        return module.weight
    raise UnsupportedError(f"A linear layer is needed to read a weight from, but this is a {kind}.")


def weight_blocks(module: nn.Module) -> Iterator[Tensor]:
    """The weight of a linear layer in float32, in blocks of rows, which avoids a copy of the whole.

    Raises:
        UnsupportedError: The module is not a linear layer.
    """
    if isinstance(module, Int8Linear):
        for rows in _row_blocks(module.weight):
            yield _dequantize(module.weight[rows], module.scale[rows], torch.float32)
        return
    weight = linear_weight(module)
    for rows in _row_blocks(weight):
        yield weight[rows].float()


def num_parameters(model: nn.Module) -> int:
    """Number of weights and biases of a model; a quantised layer counts as the layer that it replaced."""
    total = 0
    for module in model.modules():
        sizes = {name: parameter.numel() for name, parameter in module.named_parameters(recurse=False)}
        if is_quantized(module):
            layer: Any = module
            sizes["weight"] = layer.in_features * layer.out_features
            sizes.pop("scale", None)
        total += sum(sizes.values())
    return total


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer stores its weight in 8 or 4 bits."""
    return isinstance(module, Int8Linear) or type(module).__name__ in ("Linear8bitLt", "Linear4bit")
