"""Prefetch: prepare the next items of an iterator in a background thread.

One thread is enough, since tokenisers release Python's global interpreter lock, and one thread preserves the order.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_S = 0.1


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


def prefetch(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items in the same order, with up to `depth` prepared in advance.

    An exception in the thread is raised here, at its position in the order. The thread ends when the
    iterator is closed or dropped.
    """
    ready: queue.Queue[_Item[T] | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, ready, stop), name="onmt_llm-data", daemon=True)
    thread.start()
    try:
        while isinstance(item := ready.get(), _Item):
            yield item.value
        if item is not None:
            raise item
    finally:
        stop.set()
        thread.join()


def _produce(items: Iterator[T], ready: queue.Queue[_Item[T] | BaseException | None], stop: threading.Event) -> None:
    last: BaseException | None = None
    try:
        for value in items:
            if not _put(ready, _Item(value), stop):
                return
    except BaseException as error:  # passed to the consumer, which raises it
        last = error
    _put(ready, last, stop)


def _put(
    ready: queue.Queue[_Item[T] | BaseException | None], item: _Item[T] | BaseException | None, stop: threading.Event
) -> bool:
    """Wait for room; False if the consumer has left."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_S)
            return True
        except queue.Full:
            continue
    return False
