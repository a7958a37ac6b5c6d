"""Time spent waiting for batches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Stopwatch(Iterator[T]):
    """Iterates over items and measures how long they take to arrive.

    Args:
        items: The items to iterate over.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._seconds = 0.0

    def __next__(self) -> T:
        began = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self._seconds += time.perf_counter() - began

    def lap(self) -> float:
        """Seconds waited since the last lap."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
