"""Blocks of rows cover every row once."""

from __future__ import annotations

import pytest

from onmt_llm.nn.cpu.row_blocks import row_blocks


@pytest.mark.parametrize(("rows", "width", "elements"), [(10, 4, 12), (10, 4, 1), (3, 5, 1000), (0, 5, 10)])
def test_blocks_cover_all_rows_in_order(rows: int, width: int, elements: int) -> None:
    blocks = row_blocks(rows, width, elements)
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert all((block.stop - block.start) * width <= max(elements, width) for block in blocks)
