"""Cut the sorted examples of a bucket into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def cut_batches(
    widths: Sequence[int], *, batch_size: int, batch_type: Literal["sents", "tokens"], multiple: int = 1
) -> list[tuple[int, int]]:
    """Boundaries of batches in a sequence of examples.

    An example wider than `batch_size` tokens gets a batch of its own.

    Args:
        widths: Columns that each example needs, in batching order.
        batch_size: Maximum number of examples, or of positions including padding (examples x widest).
        batch_type: Which of the two.
        multiple: The size of full batches is a multiple of this number, if they are at least that large.

    Returns:
        (start, end) of each batch; together they cover all examples.
    """
    cuts: list[tuple[int, int]] = []
    start = widest = 0
    for index, width in enumerate(widths):
        widest = max(widest, width)
        while index > start and _size(index + 1 - start, widest, batch_type) > batch_size:
            number = index - start
            end = start + (number - number % multiple if number > multiple else number)
            cuts.append((start, end))
            start, widest = end, max(widths[end : index + 1])
    if start < len(widths):
        cuts.append((start, len(widths)))
    return cuts


def _size(number: int, widest: int, batch_type: str) -> int:
    return number if batch_type == "sents" else number * widest
