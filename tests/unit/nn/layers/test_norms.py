"""Norms against their formulas."""

from __future__ import annotations

import pytest
import torch

import tiny
from onmt_llm.nn.layers.norms import RMSNorm, build_head_norm, build_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_and_its_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    norm = RMSNorm(32, eps=1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 32, dtype=dtype, requires_grad=True)
    exact = x.double()
    expected = exact / (exact.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    found = norm(x)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    direction = torch.randn(2, 5, 32, dtype=dtype)
    ours = torch.autograd.grad(found, [x, norm.weight], direction)
    theirs = torch.autograd.grad(expected, [x, norm.weight], direction.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=10 * tolerance, rtol=10 * tolerance)


def test_another_kernel_takes_its_place() -> None:
    norm = RMSNorm(4, eps=1e-5)
    norm.kernel = lambda x, weight, eps: x + weight + eps
    torch.testing.assert_close(norm(torch.zeros(4)), torch.full((4,), 1.00001))


@pytest.mark.parametrize(
    ("options", "kind", "bias"),
    [
        ({"norm": "rmsnorm"}, RMSNorm, False),
        ({"norm": "layernorm"}, torch.nn.LayerNorm, True),
        ({"norm": "layernorm", "norm_bias": False}, torch.nn.LayerNorm, False),
    ],
)
def test_the_configured_norm_is_built(options: dict, kind: type, bias: bool) -> None:
    norm = build_norm(tiny.config(norm_eps=1e-4, **options), 12)
    assert isinstance(norm, kind) and norm.eps == 1e-4 and norm.weight.shape == (12,)
    assert (getattr(norm, "bias", None) is not None) is bias
    assert build_norm(tiny.config(**options)).weight.shape == (32,)


def test_heads_are_normalised_by_rms_norm_whatever_the_model_has() -> None:
    norm = build_head_norm(tiny.config(norm="layernorm", head_dim=6))
    assert isinstance(norm, RMSNorm) and norm.weight.shape == (6,)
