"""How lengths count: in scores, and as limits."""

from __future__ import annotations

from collections.abc import Callable


def length_penalty(kind: str, alpha: float) -> Callable[[int], float]:
    """What a score is divided by, as a function of the answer's tokens, the end token included.

    The length that OpenNMT-py puts into the formulas counts the start token too: tokens + 1.

    Args:
        kind: "none", "avg" = length^alpha, "wu" = ((5 + length) / 6)^alpha.
        alpha: The exponent.
    """
    table: dict[str, Callable[[int], float]] = {
        "none": lambda n: 1.0,
        "avg": lambda n: float(n + 1) ** alpha,
        "wu": lambda n: ((5.0 + n + 1) / 6.0) ** alpha,
    }
    return table[kind]


def max_answer_length(max_length: int, max_length_ratio: float, source_length: int) -> int:
    """Tokens that an encoder-decoder's answer may have, as in OpenNMT-py, where a batch's longest source counts."""
    if max_length_ratio <= 0:
        return max_length
    return int(min(max_length, source_length * max_length_ratio + 5))
