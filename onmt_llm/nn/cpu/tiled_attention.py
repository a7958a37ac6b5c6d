"""Causal self-attention on a CPU in tiles: blocks of queries with only the keys that they see.

torch's CPU kernel spends most of its time in the backward pass, and handles packed documents and windows only by a mask
over all pairs. Here a tile is a few matrix products and a softmax over scores that stay in the processor's caches. Keys
that no query of the tile sees are skipped, so a row of many documents costs no more than the documents alone. The
backward pass recomputes the weights (Dao et al. 2022), so only q, k and v are saved.

Shapes: B rows, N heads, K key heads, G = N / K heads that share a key head, T positions, S keys of a tile, H width of a
head, P pairs of row and key head (B x K), X queries of a group (T x G, the heads of a position side by side), R those
of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from onmt_llm.nn.masks import Mask, minus_inf

# Most scores of a tile: 2 MiB of them in bf16.
_SCORES = 1 << 20
# Fewest rows of a tile's products; smaller ones are slower.
_PRODUCT_ROWS = 128
_QUERIES = 64


@dataclass(frozen=True)
class Tile:
    """Queries that are processed together.

    Attributes:
        pairs: Range of P, the pairs of row and key head.
        rows: Range of X, the queries.
        keys: Positions that at least one of them sees: a range, or with a sink their numbers.
        bias: Added to the scores of the last keys (as many as its width): 0, or -inf where a query does not see the
            key; (R, width).
    """

    pairs: slice
    rows: slice
    keys: slice | Tensor
    bias: Tensor


def mask_tiles(mask: Mask, q_BNTH: Tensor, k_BKTH: Tensor) -> list[Tile]:
    """The tiles of a causal mask; computed once for all layers of a model."""
    (rows, heads, length, _), key_heads, dtype = q_BNTH.shape, k_BKTH.shape[1], q_BNTH.dtype
    key = (rows, heads, length, key_heads, dtype)
    if key not in mask.kernel_cache:
        mask.kernel_cache[key] = (
            causal_tiles(rows, length, heads, key_heads, dtype)
            if mask.first_BT is None
            else limited_tiles(mask.first_BT.expand(rows, -1), heads, key_heads, dtype, sink=mask.sink)
        )
    return mask.kernel_cache[key]


def causal_tiles(rows: int, length: int, heads: int, key_heads: int, dtype: torch.dtype) -> list[Tile]:
    """Tiles of rows in which every query sees itself and all keys before it."""
    group = heads // key_heads
    tiles = []
    for queries in _even_spans(length, _tile_length(group)):
        bias = _bias(_later(queries, queries), group, dtype)
        for pairs in _even_spans(rows * key_heads, _pairs_at_once(group, queries, queries.stop)):
            tiles.append(Tile(pairs, _group_rows(queries, group), slice(0, queries.stop), bias))
    return tiles


def limited_tiles(
    first_BT: Tensor, heads: int, key_heads: int, dtype: torch.dtype, *, sink: bool = False
) -> list[Tile]:
    """Tiles of rows in which every query sees itself and the keys before it from `first_BT` on; with a sink, key 0
    too."""
    group = heads // key_heads
    tiles = []
    for queries in _even_spans(first_BT.shape[1], _tile_length(group)):
        lowest_B = first_BT[:, queries].amin(dim=1).tolist()
        for row, lowest in enumerate(lowest_B):
            keys = slice(lowest, queries.stop)
            key_S = torch.arange(keys.start, keys.stop)
            hidden = _later(queries, keys) | (key_S < first_BT[row, queries, None])
            if sink:
                hidden &= key_S > 0
            bias = _bias(hidden, group, dtype)
            seen = F.pad(key_S, (1, 0)) if sink and lowest > 0 else keys
            for part in _even_spans(key_heads, _pairs_at_once(group, queries, keys.stop - keys.start)):
                pairs = slice(row * key_heads + part.start, row * key_heads + part.stop)
                tiles.append(Tile(pairs, _group_rows(queries, group), seen, bias))
    return tiles


def attend_tiled(
    q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, tiles: list[Tile], scale: float, *, forward_by_torch: bool = False
) -> Tensor:
    """softmax(scale q k' + bias) v; each group of N / K query heads shares a key head.

    Args:
        q_BNTH: Queries.
        k_BKTH: Keys.
        v_BKTH: Values.
        tiles: For these rows, heads and positions, and this dtype.
        scale: Of the scores.
        forward_by_torch: Use torch's kernel for the forward pass, and tiles only for the gradients. The mask must be
            purely causal.

    Returns:
        (B, N, T, H); in memory the heads of a position are adjacent.
    """
    with torch.autocast("cpu", enabled=False):
        return _AttendTiled.apply(q_BNTH, k_BKTH, v_BKTH, tiles, scale, forward_by_torch)


def torch_is_faster(dtype: torch.dtype) -> bool:
    """Whether the forward pass of torch's kernel is faster: it uses AMX for bf16."""
    return dtype == torch.bfloat16 and bool(torch.cpu._is_amx_tile_supported())


class _AttendTiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BNTH: Tensor,
        k_BKTH: Tensor,
        v_BKTH: Tensor,
        tiles: list[Tile],
        scale: float,
        forward_by_torch: bool,
    ) -> Tensor:
        ctx.save_for_backward(q_BNTH, k_BKTH, v_BKTH)
        ctx.tiles, ctx.scale = tiles, scale
        if forward_by_torch:
            return F.scaled_dot_product_attention(
                q_BNTH, k_BKTH, v_BKTH, is_causal=True, scale=scale, enable_gqa=q_BNTH.shape[1] != k_BKTH.shape[1]
            )
        q_PXH, k_PTH, v_PTH = _grouped(q_BNTH, k_BKTH, scale), _flat_pairs(k_BKTH), _flat_pairs(v_BKTH)
        out_PXH = torch.empty_like(q_PXH)
        for tile in tiles:
            q_PRH, k_PSH = q_PXH[tile.pairs, tile.rows], k_PTH[tile.pairs, tile.keys]
            out_PXH[tile.pairs, tile.rows] = torch.bmm(_weights(q_PRH, k_PSH, tile), v_PTH[tile.pairs, tile.keys])
        return _heads_adjacent(out_PXH, q_BNTH, k_BKTH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNTH: Tensor) -> tuple[Tensor | None, ...]:
        q_BNTH, k_BKTH, v_BKTH = ctx.saved_tensors
        q_PXH, k_PTH, v_PTH = _grouped(q_BNTH, k_BKTH, ctx.scale), _flat_pairs(k_BKTH), _flat_pairs(v_BKTH)
        grad_PXH = _grouped(grad_BNTH, k_BKTH)
        dq_PXH = torch.empty_like(q_PXH)
        # 16 bits are too few for sums over the tiles.
        sum_dtype = torch.promote_types(k_PTH.dtype, torch.float32)
        dk_PTH, dv_PTH = torch.zeros_like(k_PTH, dtype=sum_dtype), torch.zeros_like(v_PTH, dtype=sum_dtype)
        for tile in ctx.tiles:
            pairs, rows, keys = tile.pairs, tile.rows, tile.keys
            # contiguous: otherwise each product would make its own copy
            q_PRH, out_grad_PRH = q_PXH[pairs, rows].contiguous(), grad_PXH[pairs, rows].contiguous()
            k_PSH = k_PTH[pairs, keys].contiguous()
            weights_PRS = _weights(q_PRH, k_PSH, tile)
            dv_PTH[pairs, keys] += torch.bmm(weights_PRS.mT, out_grad_PRH)
            grads_PRS = torch.bmm(out_grad_PRH, v_PTH[pairs, keys].mT)
            grads_PRS = torch._softmax_backward_data(grads_PRS, weights_PRS, -1, weights_PRS.dtype)
            dq_PXH[pairs, rows] = torch.bmm(grads_PRS, k_PSH)
            dk_PTH[pairs, keys] += torch.bmm(grads_PRS.mT, q_PRH)
        dq_BNTH = _heads_adjacent(dq_PXH.mul_(ctx.scale), q_BNTH, k_BKTH)
        dk_BKTH, dv_BKTH = (x.view(k_BKTH.shape).to(k_BKTH.dtype) for x in (dk_PTH, dv_PTH))
        return dq_BNTH, dk_BKTH, dv_BKTH, None, None, None


def _weights(q_PRH: Tensor, k_PSH: Tensor, tile: Tile) -> Tensor:
    """(P, R, S) softmax of a tile's scores; q is already scaled."""
    scores_PRS = torch.bmm(q_PRH, k_PSH.mT)
    scores_PRS[..., -tile.bias.shape[1] :] += tile.bias
    return torch.softmax(scores_PRS, -1)


def _grouped(x_BNTH: Tensor, k_BKTH: Tensor, scale: float = 1.0) -> Tensor:
    """(P, X, H), contiguous and scaled: for each position the heads of a group are adjacent."""
    x_BKTGH = x_BNTH.unflatten(1, (k_BKTH.shape[1], -1)).transpose(2, 3)
    # scaling while changing the layout would be slow
    x_PXH = x_BKTGH.clone(memory_format=torch.contiguous_format).view(
        -1, x_BKTGH.shape[2] * x_BKTGH.shape[3], x_BNTH.shape[3]
    )
    return x_PXH if scale == 1.0 else x_PXH.mul_(scale)


def _flat_pairs(x_BKTH: Tensor) -> Tensor:
    """(P, T, H), contiguous."""
    return x_BKTH.contiguous().flatten(0, 1)


def _heads_adjacent(x_PXH: Tensor, q_BNTH: Tensor, k_BKTH: Tensor) -> Tensor:
    """(B, N, T, H) with all heads of a position adjacent in memory, as the output projection needs them."""
    batch, heads, length, size = q_BNTH.shape
    x_BKTGH = x_PXH.view(batch, k_BKTH.shape[1], length, -1, size)
    return x_BKTGH.transpose(1, 2).reshape(batch, length, heads, size).transpose(1, 2)


def _group_rows(queries: slice, group: int) -> slice:
    return slice(queries.start * group, queries.stop * group)


def _bias(hidden: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    return minus_inf(hidden, dtype).repeat_interleave(group, dim=0)


def _tile_length(group: int) -> int:
    return max(_QUERIES, _PRODUCT_ROWS // group)


def _pairs_at_once(group: int, queries: slice, keys: int) -> int:
    return max(1, _SCORES // (group * (queries.stop - queries.start) * keys))


def _even_spans(length: int, step: int) -> Iterator[slice]:
    """Spans of about `step`, without a small remainder."""
    step = -(-length // max(1, round(length / step)))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _later(queries: slice, keys: slice) -> Tensor:
    """(queries, keys): keys that come after the query."""
    return torch.arange(keys.start, keys.stop) > torch.arange(queries.start, queries.stop)[:, None]
