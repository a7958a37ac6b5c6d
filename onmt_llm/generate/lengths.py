"""Lengths: batches of prompts of similar length, and length penalties and limits of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from onmt_llm.config.generate import GenerationConfig

BatchType = Literal["sents", "tokens"]


def make_batches(
    lengths: Sequence[int], *, batch_size: int, batch_type: BatchType, same_length: bool = False
) -> list[list[int]]:
    """Group prompts of similar length into batches.

    Args:
        lengths: Tokens of each prompt; prompts of length 0 are left out.
        batch_size: Maximum number of prompts (`sents`) or of prompt tokens with padding (`tokens`) in a batch; it
            has at least one prompt.
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


def length_penalty(options: GenerationConfig) -> Callable[[int], float]:
    """Divisor of a score, as a function of the number of tokens of the answer, end token included.

    As in OpenNMT-py, the length in the formulas counts the start token too: tokens + 1.
    """
    alpha = options.alpha
    table: dict[str, Callable[[int], float]] = {
        "none": lambda n: 1.0,
        "avg": lambda n: float(n + 1) ** alpha,
        "wu": lambda n: ((5.0 + n + 1) / 6.0) ** alpha,
    }
    return table[options.length_penalty]


def max_answer_length(options: GenerationConfig, source_length: int) -> int:
    """Maximum number of tokens of an encoder-decoder's answer, by OpenNMT-py's formula.

    OpenNMT-py applies it to the longest source of the batch.
    """
    if options.max_length_ratio <= 0:
        return options.max_length
    return int(min(options.max_length, source_length * options.max_length_ratio + 5))
