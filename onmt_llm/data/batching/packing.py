"""Packing: put several documents into one row instead of padding.

`pack` puts whole examples where they fit best, the longest first (best-fit decreasing, Ding et al. 2024); `split` first
cuts examples that are longer than a row; `wrap` concatenates all examples and cuts wherever a row is full. A part of a
document trains the same labels as in the whole, since every position has its own label.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Literal

from onmt_llm.data.batching.collate import PackedRow, RowPart, whole
from onmt_llm.data.example import Encoded

Packing = Literal["off", "pack", "split", "wrap"]


def pack_rows(examples: Sequence[Encoded], packing: Packing, length: int) -> list[PackedRow]:
    """Arrange examples in rows of up to `length` positions on either side.

    Args:
        examples: Examples of one bucket.
        packing: Method.
        length: Positions per row. With `pack`, a longer example gets a longer row of its own.
    """
    if packing == "wrap":
        return _wrap([whole(example) for example in examples], length)
    parts = [whole(example) for example in examples]
    if packing == "split":
        parts = [piece for part in parts for piece in _pieces(part, length)]
    return _best_fit(parts, length)


def row_width(row: PackedRow) -> int:
    """Columns that a row needs in a batch: its longer side."""
    tgt = sum(part.end - part.start for part in row)
    return max(tgt, sum(0 if part.example.src is None else len(part.example.src) for part in row))


def _pieces(part: RowPart, length: int) -> list[RowPart]:
    return [part._replace(start=start, end=min(start + length, part.end)) for start in range(0, part.end, length)]


def _wrap(parts: Sequence[RowPart], length: int) -> list[PackedRow]:
    rows: list[PackedRow] = []
    room = 0
    for part in parts:
        start = part.start
        while start < part.end:
            if not room:
                rows.append([])
                room = length
            end = min(part.end, start + room)
            rows[-1].append(part._replace(start=start, end=end))
            room -= end - start
            start = end
    return rows


def _best_fit(parts: Sequence[RowPart], length: int) -> list[PackedRow]:
    """Put each part, the widest first, into the fullest row with room for it (on the source side, too)."""
    sizes = [(part.end - part.start, 0 if part.example.src is None else len(part.example.src)) for part in parts]
    order = sorted(range(len(parts)), key=lambda index: -max(sizes[index]))
    rows: list[PackedRow] = []
    # (room on the target side, room on the source side, row), sorted: the first that fits is the fullest
    open_rows: list[tuple[int, int, int]] = []
    for index in order:
        tgt, src = sizes[index]
        place = bisect_left(open_rows, (tgt, src, -1))
        while place < len(open_rows) and open_rows[place][1] < src:
            place += 1
        if place < len(open_rows):
            tgt_room, src_room, row = open_rows.pop(place)
        else:
            tgt_room, src_room, row = length, length, len(rows)
            rows.append([])
        rows[row].append(parts[index])
        if tgt_room > tgt and (src_room > src or not src):
            insort(open_rows, (tgt_room - tgt, src_room - src, row))
    return rows
