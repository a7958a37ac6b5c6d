"""Length penalties and length limits of answers."""

from __future__ import annotations

from collections.abc import Callable


def length_penalty(kind: str, alpha: float) -> Callable[[int], float]:
    """Divisor of a score, as a function of the number of tokens of the answer, end token included.

    As in OpenNMT-py, the length in the formulas counts the start token too: tokens + 1.

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
    """Most tokens of an encoder-decoder's answer, by OpenNMT-py's formula (there for the batch's longest source)."""
    if max_length_ratio <= 0:
        return max_length
    return int(min(max_length, source_length * max_length_ratio + 5))
