"""Attention sinks (gpt-oss): each head has one more score in its softmax, a learned number, whose value is zero.

A sink is one more key for the kernels of `attention.py`. All heads of a group share their keys but not their sinks, so
the score comes from further dimensions: the query has the head's sink there, and of all keys only the sink's has a one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onmt_llm.nn.masks import Mask

_DIMENSIONS = 8
"""Added to the width of a head, of which one is used: kernels of GPUs need a multiple of eight."""


def with_sink_key(
    q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, sinks_N: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Mask]:
    """Queries, keys, values and mask of the same attention with the sink as the first key, in wider heads.

    A causal mask stays one: a first query is added, which sees only the sink.

    Returns:
        q (B, N, T or T + 1, H + 8), k and v (B, K, S + 1, H + 8), and the mask.
    """
    sink_N1 = F.pad((sinks_N / scale).to(q_BNTH.dtype)[:, None], (0, _DIMENSIONS - 1))
    q = torch.cat([q_BNTH, sink_N1[:, None].expand(*q_BNTH.shape[:3], -1)], dim=-1)
    if mask.causal:
        q = F.pad(q, (0, 0, 1, 0))
    k, v = (F.pad(x_BKSH, (0, _DIMENSIONS, 1, 0)) for x_BKSH in (k_BKSH, v_BKSH))
    k[:, :, 0, k_BKSH.shape[-1]] = 1
    return q, k, v, _with_first_key(mask)


def attend_one_with_sinks(
    q_BN1H: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Mask, sinks_N: Tensor, scale: float
) -> Tensor:
    """The attention of one query per head, (B, N, 1, H), which needs no copy of the keys and values."""
    (batch, heads, _, _), (_, kv_heads, keys, _) = q_BN1H.shape, k_BKSH.shape
    q_BKGH = q_BN1H.reshape(batch, kv_heads, heads // kv_heads, -1)
    scores_BKGS = (scale * q_BKGH @ k_BKSH.mT).float()
    bias = mask.as_float(1, keys)
    if bias is not None:
        scores_BKGS = scores_BKGS + bias.expand(-1, heads, -1, -1).reshape(-1, *scores_BKGS.shape[1:])
    sinks_BKG1 = sinks_N.float().view(1, kv_heads, -1, 1).expand(batch, -1, -1, -1)
    weights_BKGS = torch.cat([scores_BKGS, sinks_BKG1], dim=-1).softmax(dim=-1)[..., :-1]
    return (weights_BKGS.to(v_BKSH.dtype) @ v_BKSH).reshape(q_BN1H.shape)


def _with_first_key(mask: Mask) -> Mask:
    """The mask with one more key, the first, that every query sees; computed once for all layers."""
    if torch.compiler.is_compiling():
        return _widened(mask)
    if "sinks" not in mask.kernel_cache:
        mask.kernel_cache["sinks"] = _widened(mask)
    return mask.kernel_cache["sinks"]


def _widened(mask: Mask) -> Mask:
    if mask.causal:
        first_BT = None if mask.first_BT is None else F.pad(mask.first_BT + 1, (1, 0))
        return Mask(causal=True, first_BT=first_BT, sink=True)
    bias = mask.bias
    return Mask() if bias is None else Mask(F.pad(bias, (1, 0), value=1 if bias.dtype == torch.bool else 0))
