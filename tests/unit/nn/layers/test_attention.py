"""Attention on a GPU (on a CPU's tensors here) and by the kernels for a CPU: the results of plain attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onmt_llm.nn.cpu.tiled_attention import mask_tiles
from onmt_llm.nn.layers.attention import _attend_on_gpu, attend, attend_on_cpu, attend_plain
from onmt_llm.nn.masks import Mask

LENGTH = 9
FIRST_BT = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 7, 7], [0] * LENGTH])


@pytest.mark.parametrize(
    "mask",
    [
        Mask(),
        Mask(causal=True),
        Mask(causal=True, first_BT=FIRST_BT),
        Mask(torch.randn(1, 4, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1))),
    ],
    ids=["all", "causal", "documents", "bias"],
)
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_masks_and_groups_on_a_gpu(mask: Mask, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, LENGTH, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, LENGTH, 8, generator=generator)
    found = _attend_on_gpu(q, k, v, mask, 0.3, 0.0)
    torch.testing.assert_close(found, attend_plain(q, k, v, mask, 0.3), atol=1e-5, rtol=0)


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, LENGTH, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, LENGTH, 8, generator=generator)
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize(
    ("mask", "dtype", "has_kernel"),
    [
        (Mask(causal=True), torch.float32, False),
        (Mask(causal=True), torch.bfloat16, True),
        (Mask(causal=True, first_BT=FIRST_BT), torch.float32, True),
        (Mask(torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril(3)), torch.float32, False),
        (Mask(), torch.float32, False),
    ],
    ids=["causal", "causal-bf16", "documents", "bias", "all"],
)
def test_every_mask_on_a_cpu(mask: Mask, dtype: torch.dtype, has_kernel: bool) -> None:
    q, k, v = tensors(dtype)
    assert (attend_on_cpu(q, k, v, mask, 0.3, 0.0) is not None) == has_kernel
    expected = attend_plain(*tensors(), mask, 0.3)
    torch.testing.assert_close(
        attend(q, k, v, mask, 0.3).float(), expected, atol=0.03 if dtype != expected.dtype else 1e-5, rtol=0
    )


def test_dropout_without_a_trained_bias_has_a_kernel() -> None:
    q, k, v = tensors()
    assert attend_on_cpu(q, k, v, Mask(causal=True), 0.3, 0.1) is not None


def test_a_trained_bias_gets_its_gradient_under_dropout() -> None:
    bias = torch.zeros(1, 4, LENGTH, LENGTH, requires_grad=True)
    attend(*tensors(), Mask(bias), 0.3, 0.1).square().sum().backward()
    assert bias.grad is not None and bias.grad.abs().max() > 0


def test_layers_share_the_tiles_of_a_mask() -> None:
    q, k, _ = tensors()
    mask = Mask(causal=True, first_BT=FIRST_BT)
    assert mask_tiles(mask, q, k) is mask_tiles(mask, q, k)
