"""Batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

BatchType = Literal["sents", "tokens"]


def make_batches(
    lengths: Sequence[int], *, batch_size: int, batch_type: BatchType, same_length: bool = False
) -> list[list[int]]:
    """Group prompts of similar length into batches.

    Args:
        lengths: Tokens of each prompt; prompts of length 0 are left out.
        batch_size: Most prompts (`sents`) or prompt tokens with padding (`tokens`) of a batch; it has at least one
            prompt.
        batch_type: Unit of `batch_size`.
        same_length: All prompts of a batch have the same length.

    Returns:
        Places in `lengths`, batch by batch; the longest first, so a lack of memory shows at once.
    """
    batches: list[list[int]] = []
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    for place in order:
        batch = batches[-1] if batches else []
        longest = lengths[batch[0]] if batch else 0
        size = (len(batch) + 1) * (longest if batch_type == "tokens" else 1)
        if not batch or size > batch_size or (same_length and lengths[place] != longest):
            batches.append([place])
        else:
            batch.append(place)
    return batches
