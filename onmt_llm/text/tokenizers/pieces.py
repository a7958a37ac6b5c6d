"""`Pieces`: the tokens of a text as numbers in the tokeniser's own table.

Training needs numbers, not strings: 100 tokens take 400 bytes as numbers and 7 KB as strings. The strings are made on
demand.
"""

from __future__ import annotations

from collections.abc import Sequence


class PieceTable:
    """The pieces behind a tokeniser's numbers. Tables are compared by identity.

    Args:
        tokens: Pieces in id order.
    """

    __slots__ = ("tokens",)

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tokens


class Pieces:
    """Tokens of one text.

    Attributes:
        table: The pieces behind the numbers.
        ids: The numbers, 4 bytes each in native byte order.
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
