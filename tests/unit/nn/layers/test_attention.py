"""The GPU's branch of attention, on a CPU's tensors: masks and groups of heads as in plain attention."""

from __future__ import annotations

import pytest
import torch

from onmt_llm.nn.layers.attention import _attend_on_gpu, attend_plain
from onmt_llm.nn.masks import Mask

FIRST_BT = torch.tensor([[0, 0, 0, 3, 3], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    "mask",
    [
        Mask(),
        Mask(causal=True),
        Mask(causal=True, first_BT=FIRST_BT),
        Mask(torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(1))),
    ],
    ids=["all", "causal", "documents", "bias"],
)
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_masks_and_groups(mask: Mask, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, 5, 8, generator=generator)
    found = _attend_on_gpu(q, k, v, mask, 0.3, 0.0)
    torch.testing.assert_close(found, attend_plain(q, k, v, mask, 0.3), atol=1e-5, rtol=0)
