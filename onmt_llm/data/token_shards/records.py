"""Token records: encode examples for shards, and decode them into ids.

The first part of a record is JSON with further counts from its creation (`{"dropped": {"too_long": 1}}`), or empty. The
arrays of its examples follow, as 32-bit little-endian integers: for every example those in `parts`, in that order. In
the target, the highest bit marks tokens that are not trained.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onmt_llm.data.example import IGNORED, Encoded, Ids
from onmt_llm.data.readers import Record
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.errors import DataError

ArrayName = Literal["src", "features", "tgt", "align"]
Words = npt.NDArray[np.uint32]

UNTRAINED = 1 << 31
_RECOUNTED = ("read", "kept", "tokens", "trained", "lengths", "src_lengths")


def parts_of(encoded: Encoded) -> tuple[ArrayName, ...]:
    """Names of the arrays of an example."""
    held: dict[ArrayName, object] = {
        "src": encoded.src,
        "features": encoded.features,
        "tgt": encoded.tgt,
        "align": encoded.align,
    }
    return tuple(part for part, array in held.items() if array is not None)


def to_words(encoded: Encoded) -> list[Words]:
    """The arrays of an example. Input and labels are one sequence, since they are the same tokens, shifted.

    Raises:
        DataError: Its labels are not the tokens of its input.
    """
    sequence: Words = np.append(encoded.tgt, encoded.labels[-1:]).astype(np.uint32)
    untrained = np.append(True, encoded.labels == IGNORED)
    if not np.array_equal(encoded.labels[:-1][~untrained[1:-1]], encoded.tgt[1:][~untrained[1:-1]]):
        raise DataError("The labels of a packed example must be its own tokens, shifted by one, but are not.")
    if untrained[-1]:
        sequence[-1] = 0  # unused: neither input nor label
    # the first token is never a label; marking it would make a fully trained shard look masked
    sequence[1:] |= np.where(untrained[1:], UNTRAINED, 0).astype(np.uint32)
    arrays: list[Words] = [] if encoded.src is None else [encoded.src.astype(np.uint32)]
    arrays += [] if encoded.features is None else [encoded.features.ravel().astype(np.uint32)]
    arrays.append(sequence)
    return arrays if encoded.align is None else [*arrays, encoded.align.ravel().astype(np.uint32)]


def skipped_counts(counts: CorpusCounts) -> bytes:
    """The first part of a record, from its counts."""
    rest = {name: value for name, value in counts.to_dict().items() if name not in _RECOUNTED and value}
    if counts.read > 1:
        rest["read"] = counts.read - 1  # records that were passed over before this one
    return json.dumps(rest, sort_keys=True).encode() if rest else b""


@dataclass
class TokenDecoder:
    """Decodes token records into ids.

    Attributes:
        name: Name of the corpus, for messages.
        parts: Arrays of each example.
        vocab_size: Vocabulary size of the decoder.
        src_vocab_size: Vocabulary size of the encoder.
        num_features: Features per source token.
    """

    name: str
    parts: Sequence[ArrayName]
    vocab_size: int
    src_vocab_size: int
    num_features: int = 0
    _counts: dict[bytes, CorpusCounts] = field(default_factory=dict)

    @cached_property
    def _target(self) -> int:
        return list(self.parts).index("tgt")

    def __call__(self, records: Sequence[Record], counts: CorpusCounts) -> Iterator[tuple[Record, Encoded]]:
        """Yield (record, ids) for every example, and add the stored counts to `counts`.

        Raises:
            DataError: A token is not in the vocabulary.
        """
        counts.read += len(records)
        for record in records:
            if record.parts[0]:
                counts.add(self._what_else(record.parts[0]))
        arrays = [part for record in records for part in record.parts[1:]]
        words: Words = np.frombuffer(b"".join(arrays), dtype="<u4")
        ids = (words & (UNTRAINED - 1)).astype(np.int32)
        labels = np.where(words >= UNTRAINED, IGNORED, ids).astype(np.int32) if (words >= UNTRAINED).any() else ids
        bounds = np.cumsum([0, *(len(part) // 4 for part in arrays)]).tolist()
        spans = list(pairwise(bounds))
        self._check(ids, spans)
        each, place = len(self.parts), 0
        for record in records:
            for _ in range((len(record.parts) - 1) // each):
                yield record, self._encoded(ids, labels, spans[place : place + each])
                place += each

    def _encoded(self, ids: Ids, labels: Ids, spans: Sequence[tuple[int, int]]) -> Encoded:
        start, end = spans[self._target]
        trained = end - start - 1 if labels is ids else None
        if len(spans) == 1:
            return Encoded(None, ids[start : end - 1], labels[start + 1 : end], 0, trained=trained)
        held = {part: ids[first:last] for part, (first, last) in zip(self.parts, spans, strict=True)}
        features, align = held.get("features"), held.get("align")
        return Encoded(
            held.get("src"),
            ids[start : end - 1],
            labels[start + 1 : end],
            0,
            None if features is None else features.reshape(-1, self.num_features),
            None if align is None else align.reshape(-1, 2),
            trained,
        )

    def _check(self, ids: Ids, spans: Sequence[tuple[int, int]]) -> None:
        """Refuse ids outside the vocabulary: on a GPU they would crash a run without a useful message."""
        if not len(ids) or ids.max() < min(self.vocab_size, self.src_vocab_size):
            return
        for number, (start, end) in enumerate(spans):
            part = self.parts[number % len(self.parts)]
            size = {"tgt": self.vocab_size, "src": self.src_vocab_size}.get(part)
            if size is not None and end > start and (highest := ids[start:end].max()) >= size:
                raise DataError(
                    f"Tokens of corpus '{self.name}' must be below {size}, the size of the vocabulary, "
                    f"but one is {highest}.",
                    hint="the shards were written with another tokeniser",
                )

    def _what_else(self, text: bytes) -> CorpusCounts:
        found = self._counts.get(text)
        if found is None:
            saved: Mapping[str, Any] = json.loads(text)
            found = CorpusCounts.from_dict({"dropped": Counter(), **saved})
            if len(self._counts) < 10_000:
                self._counts[text] = found
        return found
