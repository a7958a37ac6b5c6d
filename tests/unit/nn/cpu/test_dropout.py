"""Dropout: rates, factors, gradients, and the same numbers from the same seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onmt_llm.nn.cpu.dropout import dropout, dropout_add, relu_dropout
from onmt_llm.nn.layers.attention import attend
from onmt_llm.nn.masks import Mask

RATES = [0.1, 0.5, 0.999]
ZERO = torch.zeros(())
FORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "dropout": lambda x, rate: dropout(x, rate, True),
    "add": lambda x, rate: dropout_add(ZERO.expand_as(x), x, rate, True),
    "relu": lambda x, rate: relu_dropout(x, rate, True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rate", RATES)
def test_the_wanted_share_is_dropped_and_the_rest_scaled(form: str, rate: float) -> None:
    torch.manual_seed(0)
    y = FORMS[form](torch.ones(400, 501), rate)
    kept = y != 0
    assert abs(1 - kept.float().mean() - rate) < 3e-3
    torch.testing.assert_close(
        y[kept], torch.full_like(y[kept], 1 / (1 - rate)), rtol=2e-2 if rate > 0.9 else 1e-4, atol=0
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_passes_where_something_was_kept(form: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 33, requires_grad=True)
    y = FORMS[form](x, 0.25)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.where(y != 0, 4 / 3, 0.0), rtol=1e-4, atol=0)


def test_the_residual_stream_itself_is_whole() -> None:
    x, y = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6)
    out = dropout_add(x, y, 0.5, True)
    off = (out - x).abs() < 1e-6
    torch.testing.assert_close(out[~off], (x + 2 * y)[~off])
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x)) and 0 < off.sum() < off.numel()


def test_torchs_generator_decides() -> None:
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x, 0.3, True), dropout(x, 0.3, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3, True), first) and not torch.equal(first, second)


def test_nothing_happens_in_evaluation_or_at_rate_zero() -> None:
    x, y = torch.randn(4, 5), torch.randn(4, 5)
    for rate, training in ((0.5, False), (0.0, True)):
        assert torch.equal(dropout(x, rate, training), x)
        assert torch.equal(dropout_add(x, y, rate, training), x + y)
        assert torch.equal(relu_dropout(x, rate, training), x.relu())


@pytest.mark.parametrize("kind", ["none", "causal", "padding", "bias"])
def test_attention_with_dropout_has_the_kernels_value_on_average(kind: str) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    padding = torch.arange(5) < torch.tensor([[5], [3]])
    masks = {
        "none": Mask(),
        "causal": Mask(causal=True),
        "padding": Mask(padding[:, None, None]),
        "bias": Mask(torch.randn(1, 3, 5, 5)),
    }
    mask = masks[kind]
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bias, is_causal=mask.causal)
    torch.testing.assert_close(attend(q, k, v, mask, dropout=1e-7), exact, rtol=1e-4, atol=1e-5)
    mean = torch.stack([attend(q, k, v, mask, dropout=0.2) for _ in range(1500)]).mean(0)
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.1)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_the_gradients_of_attention_with_dropout(kv_heads: int, causal: bool) -> None:
    torch.manual_seed(1)
    q = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = Mask(causal=True) if causal else Mask((torch.arange(5) < torch.tensor([[5], [3]]))[:, None, None])

    def attended(*inputs: Tensor) -> Tensor:
        torch.manual_seed(2)
        return attend(*inputs, mask, None, 0.3)

    assert torch.autograd.gradcheck(attended, (q, k, v))
