"""Time spent waiting for batches."""

from __future__ import annotations

import time
from collections.abc import Iterator

from onmt_llm.training.metrics.stopwatch import Stopwatch


def slow() -> Iterator[int]:
    for number in range(3):
        time.sleep(0.02)
        yield number


def test_only_waiting_counts_and_a_lap_starts_again() -> None:
    watch = Stopwatch(slow())
    assert next(watch) == 0
    time.sleep(0.05)
    first = watch.lap()
    assert 0.02 <= first < 0.05
    assert watch.lap() == 0
    assert list(watch) == [1, 2] and watch.lap() >= 0.04


def test_the_wait_for_the_end_counts_too() -> None:
    watch = Stopwatch(iter([]))
    assert list(watch) == [] and watch.lap() > 0
