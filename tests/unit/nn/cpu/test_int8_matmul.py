"""Matrix products in int8 against those of the dequantised weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from onmt_llm.nn.cpu import int8_matmul as int8_products
from onmt_llm.nn.cpu.int8_matmul import int8_linear
from onmt_llm.nn.quantized import Int8Linear, quantize, quantize_rows, set_int8_products

# sums of thousands, in float32
SUMS = {"rtol": 1e-5, "atol": 1e-2}


def levels(rows: int, width: int) -> Tensor:
    """Numbers that 127 levels a row hold exactly."""
    whole = torch.randint(-127, 128, (rows, width)).float()
    whole[:, 0] = 127
    return whole * torch.rand(rows, 1).exp2()


@pytest.mark.parametrize("elements", [1, 1 << 22], ids=["row by row", "at once"])
@pytest.mark.parametrize("bias", [False, True])
def test_exact_where_the_levels_are(bias: bool, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_products, "_ELEMENTS", elements)
    torch.manual_seed(0)
    weight, scale = quantize_rows(torch.randn(24, 16))
    scale.fill_(0.5)  # so that the gradients times the scales are levels, too
    x = levels(40, 16).requires_grad_()
    offset = torch.randn(24) if bias else None
    y = int8_linear(x, weight, scale, offset)
    expected = torch.nn.functional.linear(x, weight * scale[:, None], offset)
    torch.testing.assert_close(y, expected, **SUMS)
    gradient = levels(40, 24)
    (found,), (wanted,) = (torch.autograd.grad(out, x, gradient) for out in (y, expected))
    torch.testing.assert_close(found, wanted, **SUMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_what_127_levels_cost(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, scale = quantize_rows(torch.randn(96, 64))
    x = torch.randn(50, 64).to(dtype).requires_grad_()
    y, expected = int8_linear(x, weight, scale, None), x.float() @ (weight * scale[:, None]).t()
    gradient = torch.randn(50, 96).to(dtype)
    found, wanted = torch.autograd.grad(y, x, gradient)[0], gradient.float() @ (weight * scale[:, None])
    assert y.dtype == found.dtype == dtype
    for one, other in ((y, expected), (found, wanted)):
        assert 1e-4 < (one.float() - other).norm() / other.norm() < 1e-2


def test_rows_of_zeros_stay_zero() -> None:
    weight, scale = quantize_rows(torch.randn(8, 8))
    x = torch.zeros(3, 8, requires_grad=True)
    y = int8_linear(x, weight, scale, None)
    y.backward(torch.zeros_like(y))
    assert not y.any() and x.grad is not None and not x.grad.any()


def test_layers_multiply_in_int8_while_they_are_trained_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    quantize(model, ["0"], "int8")
    x = torch.randn(64, 16)
    plain = model(x)
    assert set_int8_products(model) == 1
    layer = model[0]
    assert isinstance(layer, Int8Linear)
    assert torch.equal(model(x), int8_linear(x, layer.weight, layer.scale, layer.bias))
    assert torch.equal(model.eval()(x), plain)
