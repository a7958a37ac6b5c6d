"""Split a long example into units: rounds of a conversation, or lines of a document."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onmt_llm.data.example import num_tokens
from onmt_llm.text.segment import Segment

Unit = list[Segment]
"""Segments of tokens, in order."""


def rounds(segments: Sequence[Segment]) -> list[Unit]:
    """The rounds of a conversation, each starting at a prompt; text before the first prompt belongs to its round."""
    units: list[Unit] = []
    for segment in segments:
        if segment.starts_round or not units:
            units.append([])
        units[-1].append(segment)
    return units


def lines(segments: Sequence[Segment], ends_line: Callable[[str], bool]) -> list[Unit]:
    """The lines of a text, each with the token that ends it."""
    units: list[Unit] = [[]]
    for segment in segments:
        tokens = segment.tokens or []
        start = 0
        for place, token in enumerate(tokens, start=1):
            if ends_line(token):
                units[-1].append(segment.like(tokens=tokens[start:place]))
                units.append([])
                start = place
        if start < len(tokens):
            units[-1].append(segment.like(tokens=tokens[start:]))
    return [unit for unit in units if unit]


def head(segments: Sequence[Segment], number: int) -> list[Segment]:
    """The first tokens, with their segments."""
    kept: list[Segment] = []
    for segment in segments:
        if number <= 0:
            break
        kept.append(segment.like(tokens=(segment.tokens or [])[:number]))
        number -= segment.num_tokens or 0
    return kept


def tail(segments: Sequence[Segment], number: int) -> list[Segment]:
    """The last tokens, with their segments."""
    kept: list[Segment] = []
    for segment in reversed(segments):
        if number <= 0:
            break
        kept.append(segment.like(tokens=(segment.tokens or [])[-number:]))
        number -= segment.num_tokens or 0
    return kept[::-1]


def pieces(unit: Unit, length: int) -> list[Unit]:
    """Split a unit into pieces of at most `length` tokens."""
    found: list[Unit] = []
    rest, left = list(unit), num_tokens(unit)
    while left > length:
        found.append(head(rest, length))
        left -= length
        rest = tail(rest, left)
    return [*found, rest]
