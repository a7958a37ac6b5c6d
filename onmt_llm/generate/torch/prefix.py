"""Prefix cache: the keys and values of earlier prompts and answers, for prompts that begin like them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from onmt_llm.nn.kv_cache import GRANULE, KVCache

LEAST = 16
"""Tokens in common from which a copy is worth it."""


@dataclass(frozen=True)
class _Entry:
    ids: list[object]
    caches: list[KVCache]

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)


class PrefixCache:
    """Keys and values of token sequences; those that were not used for the longest time leave first.

    A turn of a chat begins with the whole conversation so far, and many prompts begin with the same system prompt: what
    a prompt has in common with an earlier sequence is copied instead of computed. Threads may share the cache.

    Args:
        limit: Most bytes that it holds; of a sequence that is larger it holds the beginning.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: list[_Entry] = []  # the last is the one that was used last
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        with self._lock:
            return self._nbytes

    @property
    def _nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries)

    def find(self, ids: Sequence[object], *, capacity: int = 0) -> list[KVCache]:
        """A copy of the longest beginning of a prompt that it knows, without the prompt's last token.

        Args:
            ids: The prompt.
            capacity: Tokens for which the copies have room.

        Returns:
            A cache for each model, the caller's own; empty if too little is known.
        """
        with self._lock:
            common, best = max(
                ((common_length(ids, entry.ids), place) for place, entry in enumerate(self._entries)), default=(0, 0)
            )
            common = min(common, len(ids) - 1)
            if common < LEAST:
                return []
            entry = self._entries.pop(best)
            self._entries.append(entry)
        return [cache.copy(common, capacity=capacity) for cache in entry.caches]

    def store(self, ids: Sequence[object], caches: Sequence[KVCache]) -> None:
        """Remember a sequence.

        Args:
            ids: Its tokens.
            caches: Their keys and values for each model, of one row without padding. They are no longer the caller's.
        """
        entry = self._fitted(list(ids), caches)
        if len(entry.ids) < LEAST:
            return
        with self._lock:
            common = [common_length(entry.ids, other.ids) for other in self._entries]
            if len(entry.ids) in common:  # another one begins with it, and takes its place
                entry = self._entries[common.index(len(entry.ids))]
            pairs = zip(self._entries, common, strict=True)
            self._entries = [other for other, length in pairs if other is not entry and length < len(other.ids)]
            self._entries.append(entry)
            while self._nbytes > self._limit:
                self._entries.pop(0)

    def _fitted(self, ids: list[object], caches: Sequence[KVCache]) -> _Entry:
        """The sequence, or as much of its beginning as the limit allows."""
        entry = _Entry(ids, list(caches))
        if entry.nbytes <= self._limit:
            return entry
        fitting = self._limit // sum(cache.token_nbytes for cache in caches) // GRANULE * GRANULE
        return _Entry(ids[:fitting], [cache.copy(fitting) for cache in caches])


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """Number of tokens with which both begin."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
