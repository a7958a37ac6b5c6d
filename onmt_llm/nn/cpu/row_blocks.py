"""Blocks of rows that fit into the caches of a CPU, or into a bounded amount of memory."""

from __future__ import annotations


def row_blocks(rows: int, width: int, elements: int) -> list[slice]:
    """Slices of `rows` rows, each of which covers about `elements` elements of a matrix of this width."""
    step = max(1, elements // width)
    return [slice(start, start + step) for start in range(0, rows, step)]
