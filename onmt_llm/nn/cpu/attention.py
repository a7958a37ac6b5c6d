"""Dispatch of attention on a CPU to the kernels of this package.

| case                                                    | kernel                               |
|---------------------------------------------------------|--------------------------------------|
| dropout of the attention weights                        | `dropout.attend_with_dropout`             |
| causal, and bf16, packed documents or a sliding window  | `tiled_attention.attend_tiled`       |
| anything else                                           | none: torch's is as fast             |
"""

from __future__ import annotations

import torch
from torch import Tensor

from onmt_llm.nn.cpu.dropout import attend_with_dropout
from onmt_llm.nn.cpu.tiled_attention import Tile, attend_tiled, causal_tiles, limited_tiles, torch_is_faster
from onmt_llm.nn.masks import Mask


def attend_on_cpu(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, scale: float, dropout: float
) -> Tensor | None:
    """softmax(scale q k' + mask) v, (B, N, T, H); None if no kernel here beats torch's."""
    if dropout > 0.0:
        bias = mask.as_float(q_BNTH.shape[2], k_BKSH.shape[2])
        return attend_with_dropout(q_BNTH, k_BKSH, v_BKSH, bias, scale, dropout)
    if mask.causal and (q_BNTH.dtype == torch.bfloat16 or mask.first_BT is not None):
        return _attend_tiled(q_BNTH, k_BKSH, v_BKSH, mask, scale)
    return None


@torch.compiler.disable
def _attend_tiled(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, scale: float) -> Tensor:
    """Tiles are faster than the code that torch.compile generates for attention, so this breaks its graph."""
    by_torch = mask.first_BT is None and torch_is_faster(q_BNTH.dtype)
    return attend_tiled(q_BNTH, k_BKSH, v_BKSH, mask_tiles(mask, q_BNTH, k_BKSH), scale, forward_by_torch=by_torch)


def mask_tiles(mask: Mask, q_BNTH: Tensor, k_BKTH: Tensor) -> list[Tile]:
    """The tiles of a causal mask; computed once for all layers of a model."""
    (rows, heads, length, _), key_heads, dtype = q_BNTH.shape, k_BKTH.shape[1], q_BNTH.dtype
    key = (rows, heads, length, key_heads, dtype)
    if key not in mask.kernel_cache:
        mask.kernel_cache[key] = (
            causal_tiles(rows, length, heads, key_heads, dtype)
            if mask.first_BT is None
            else limited_tiles(mask.first_BT.expand(rows, -1), heads, key_heads, dtype)
        )
    return mask.kernel_cache[key]
