"""Attention of one or a few bf16 queries per head, as in decoding, on a CPU.

torch's kernel converts keys and values query by query; converted once, they are read by a batched product of float32.

Shapes: X heads of all rows (B times K), G queries that share a key head, S keys, H size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ELEMENTS = 1 << 16
"""Elements of the keys that are converted at a time: 256 KiB in float32."""
_SHORT = 64
_MANY_HEADS = 64


def are_few(q_BKGH: Tensor, k_BKSH: Tensor) -> bool:
    """Whether `attend_few` is faster than torch's kernel: with one query per head, or many heads with few keys."""
    batch, kv_heads, keys, _ = k_BKSH.shape
    if q_BKGH.dtype != torch.bfloat16 or q_BKGH.shape[1] != kv_heads:
        return False
    queries = q_BKGH.shape[2]
    return queries == 1 or (queries <= 16 and keys <= _SHORT and batch * kv_heads >= _MANY_HEADS)


@torch.autocast("cpu", enabled=False)
def attend_few(q_BKGH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k' + bias) v, (B, K, G, H), computed in float32.

    Args:
        q_BKGH, k_BKSH, v_BKSH: In any type; the result has that of the queries.
        bias: Broadcasts to (B, K, G, S), float32; None = none.
        scale: Of the scores.
    """
    batch, kv_heads, queries, size = q_BKGH.shape
    heads, keys = batch * kv_heads, k_BKSH.shape[2]
    q_XGH = (q_BKGH.float() * scale).reshape(heads, queries, size)
    k_XSH, v_XSH = k_BKSH.reshape(heads, keys, size), v_BKSH.reshape(heads, keys, size)
    bias_XGS = None if bias is None else bias.expand(batch, kv_heads, queries, keys).reshape(heads, queries, keys)
    out_XGH = torch.empty_like(q_XGH)
    step = max(1, _ELEMENTS // (keys * size))
    for start in range(0, heads, step):
        some = slice(start, start + step)
        scores_XGS = torch.bmm(q_XGH[some], k_XSH[some].float().transpose(1, 2))
        if bias_XGS is not None:
            scores_XGS += bias_XGS[some]
        torch.bmm(scores_XGS.softmax(dim=-1), v_XSH[some].float(), out=out_XGH[some])
    return out_XGH.view(q_BKGH.shape).to(q_BKGH.dtype)
