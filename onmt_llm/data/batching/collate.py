"""Collate examples into numpy arrays, which workers send and `Batch` converts to tensors. Does not import torch.

Shapes: B rows, S source positions, T target positions, F features, M aligned pairs, P examples or parts of examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onmt_llm.data.example import IGNORED, Encoded, Ids
from onmt_llm.data.parsing import preferences

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BatchArrays:
    """The fields of `Batch` as arrays, with 32-bit ids."""

    src_BS: Array | None
    src_mask_BS: Array | None
    tgt_BT: Array
    labels_BT: Array
    doc_BT: Array | None
    num_targets: int
    num_examples: int
    features_BSF: Array | None = None
    align_M3: Array | None = None
    src_doc_BS: Array | None = None
    preference_B: Array | None = None
    corpus_P2: Array | None = None


class RowPart(NamedTuple):
    """Positions `start` ... `end` - 1 of an example's target side, and all of its source side."""

    example: Encoded
    start: int
    end: int


PackedRow = list[RowPart]


def whole(example: Encoded) -> RowPart:
    """The complete example as one part."""
    return RowPart(example, 0, len(example.tgt))


def collate(examples: Sequence[Encoded], *, pad_id: int, src_pad_id: int) -> BatchArrays:
    """Collate examples, one per row, padded on the right.

    Args:
        examples: At least one; all of one task.
        pad_id: Padding of `tgt_BT`; may be any token, since no real position attends to later ones.
        src_pad_id: Padding of `src_BS`, hidden by the mask.
    """
    if examples[0].chosen is None:
        return _batch([[whole(example)] for example in examples], pad_id, src_pad_id, isolate=False)
    rated, kinds = preferences.preference_rows(examples)
    batch = _batch([[whole(example)] for example in rated], pad_id, src_pad_id, isolate=False)
    return replace(batch, num_examples=len(examples), preference_B=np.array(kinds, dtype=np.int32))


def collate_rows(rows: Sequence[PackedRow], *, pad_id: int, src_pad_id: int, isolate: bool) -> BatchArrays:
    """Collate packed rows.

    Args:
        rows: At least one.
        pad_id: Padding of `tgt_BT`.
        src_pad_id: Padding of `src_BS`.
        isolate: Number the documents of each row from 1, padding 0.
    """
    return _batch(rows, pad_id, src_pad_id, isolate=isolate)


def _batch(rows: Sequence[PackedRow], pad_id: int, src_pad_id: int, *, isolate: bool) -> BatchArrays:
    parts = [part for row in rows for part in row]
    sizes = [len(row) for row in rows]
    tgt_lengths = [part.end - part.start for part in parts]
    fill = _Filler(sizes, tgt_lengths)
    labels_BT = fill([part.example.labels[part.start : part.end] for part in parts], IGNORED)
    sources = [part.example.src for part in parts if part.example.src is not None]
    src_fill = _Filler(sizes, [len(source) for source in sources]) if sources else None
    features = [part.example.features for part in parts if part.example.features is not None]
    return BatchArrays(
        src_BS=None if src_fill is None else src_fill(sources, src_pad_id),
        src_mask_BS=None if src_fill is None else src_fill.real,
        tgt_BT=fill([part.example.tgt[part.start : part.end] for part in parts], pad_id),
        labels_BT=labels_BT,
        doc_BT=fill.documents() if isolate else None,
        num_targets=int(np.count_nonzero(labels_BT != IGNORED)),
        num_examples=sum(part.start == 0 for part in parts),
        features_BSF=src_fill(features, 0) if src_fill is not None and features else None,
        align_M3=_aligned([part.example for part in parts], fill, src_fill),
        src_doc_BS=src_fill.documents() if src_fill is not None and isolate else None,
        corpus_P2=_corpora(parts, fill, labels_BT),
    )


class _Filler:
    """Concatenates parts into rows, padded on the right.

    Args:
        sizes: Number of parts per row.
        lengths: Number of positions per part.

    Attributes:
        row: Row of each part.
        start: Start of each part in its row.
        real: (B, width) False = padding.
    """

    def __init__(self, sizes: Sequence[int], lengths: Sequence[int]) -> None:
        self._sizes, self._lengths = np.array(sizes), np.array(lengths)
        self.row = np.repeat(np.arange(len(sizes)), self._sizes)
        ends = np.cumsum(self._lengths)
        row_ends = ends[np.cumsum(self._sizes) - 1]
        row_starts = np.concatenate(([0], row_ends[:-1]))
        self.start = ends - self._lengths - row_starts[self.row]
        widths = row_ends - row_starts
        self.real = np.arange(widths.max()) < widths[:, None]

    def __call__(self, parts: Sequence[Ids], fill: int) -> Array:
        filled = np.full((*self.real.shape, *parts[0].shape[1:]), fill, dtype=np.int32)
        filled[self.real] = np.concatenate(parts)
        return filled

    def sums(self, values_BT: Array) -> Array:
        """(P,) sum of the values over each part's positions."""
        ends = np.cumsum(self._lengths)
        sums = np.concatenate(([0], np.cumsum(values_BT[self.real])))
        return sums[ends] - sums[ends - self._lengths]

    def documents(self) -> Array:
        """(B, width) number of the part at each position, from 1 within a row; 0 = padding."""
        numbers = np.arange(len(self.row)) - np.repeat(np.cumsum(self._sizes) - self._sizes, self._sizes) + 1
        filled = np.zeros(self.real.shape, dtype=np.int32)
        filled[self.real] = np.repeat(numbers, self._lengths)
        return filled


def _corpora(parts: Sequence[RowPart], fill: _Filler, labels_BT: Array) -> Array | None:
    if parts[0].example.corpus is None:
        return None
    corpus_P = np.array([part.example.corpus for part in parts])
    return np.stack([corpus_P, fill.sums(labels_BT != IGNORED)], axis=1).astype(np.int32)


def _aligned(examples: Sequence[Encoded], tgt: _Filler, src: _Filler | None) -> Array | None:
    if src is None:
        return None
    rows = [
        np.insert(example.align + np.array([tgt.start[part], src.start[part]]), 0, tgt.row[part], axis=1)
        for part, example in enumerate(examples)
        if example.align is not None and len(example.align)
    ]
    return np.concatenate(rows).astype(np.int32) if rows else None
