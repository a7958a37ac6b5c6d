"""Prefetching in a thread: order, errors in order, and an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from onmt_llm.data.workers.prefetch import prefetch
from onmt_llm.errors import DataError


def running() -> int:
    return sum(thread.name == "onmt_llm-data" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_items_keep_their_order(depth: int) -> None:
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))
    assert list(prefetch(iter([None, (), None]), depth)) == [None, (), None]


def test_no_more_than_depth_items_are_prepared_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    stream = prefetch(items(), 3)
    assert next(stream) == 0
    time.sleep(0.2)
    assert len(made) <= 1 + 3 + 1
    stream.close()  # type: ignore[attr-defined]


def test_an_error_comes_behind_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise DataError("line 4 is broken")

    taken = []
    with pytest.raises(DataError, match="line 4 is broken"):
        for item in prefetch(items(), 2):
            taken.append(item)
    assert taken == [0, 1, 2] and running() == 0


def test_a_dropped_iterator_ends_its_thread() -> None:
    stream = prefetch(iter(range(1000)), 2)
    assert next(stream) == 0 and running() == 1
    del stream
    assert running() == 0
