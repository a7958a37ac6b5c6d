"""`Pieces`: tokens of a text by their numbers in the tokeniser's own table.

A training run needs numbers, not strings; a text of 100 tokens is 400 bytes of one and 7 KB of the other. The strings
are made when someone asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence


class PieceTable:
    """What a tokeniser's numbers stand for; known by its identity.

    Args:
        tokens: Pieces in id order.
    """

    __slots__ = ("tokens",)

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tokens


class Pieces:
    """Tokens of one text.

    Attributes:
        table: What the numbers stand for.
        ids: The numbers, 4 bytes each in the machine's order.
    """

    __slots__ = ("ids", "table")

    def __init__(self, table: PieceTable, ids: bytes) -> None:
        self.table = table
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids) >> 2

    def tokens(self) -> list[str]:
        tokens = self.table.tokens
        return [tokens[id_] for id_ in memoryview(self.ids).cast("i")]
