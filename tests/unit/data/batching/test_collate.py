"""Examples side by side: padding, masks, documents, alignments and features."""

from __future__ import annotations

import numpy as np
import pytest

from onmt_llm.data.batching.collate import collate, collate_rows, whole
from onmt_llm.data.example import IGNORED, Encoded


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def example(length: int, *, src: int = 0, **fields: object) -> Encoded:
    labels = ids(*range(11, 11 + length))
    labels[0] = IGNORED
    source = ids(*range(51, 51 + src)) if src else None
    return Encoded(source, ids(*range(10, 10 + length)), labels, 0, **fields)  # type: ignore[arg-type]


def test_a_language_model_batch_is_padded_on_the_right() -> None:
    batch = collate([example(3), example(1)], pad_id=7, src_pad_id=8)
    assert batch.tgt_BT.tolist() == [[10, 11, 12], [10, 7, 7]]
    assert batch.labels_BT.tolist() == [[IGNORED, 12, 13], [IGNORED] * 3]
    assert (batch.num_targets, batch.num_examples) == (2, 2)
    assert batch.src_BS is None and batch.doc_BT is None and batch.corpus_P2 is None


def test_sources_have_a_mask() -> None:
    batch = collate([example(2, src=1), example(2, src=3)], pad_id=7, src_pad_id=8)
    assert batch.src_BS is not None and batch.src_mask_BS is not None
    assert batch.src_BS.tolist() == [[51, 8, 8], [51, 52, 53]]
    assert batch.src_mask_BS.tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("isolate", [False, True])
def test_packed_rows_number_their_documents(isolate: bool) -> None:
    rows = [[whole(example(2, src=1)), whole(example(1, src=2))], [whole(example(2, src=1))]]
    batch = collate_rows(rows, pad_id=7, src_pad_id=8, isolate=isolate)
    assert batch.tgt_BT.tolist() == [[10, 11, 10], [10, 11, 7]] and batch.num_examples == 3
    if isolate:
        assert batch.doc_BT is not None and batch.src_doc_BS is not None
        assert batch.doc_BT.tolist() == [[1, 1, 2], [1, 1, 0]] and batch.src_doc_BS.tolist() == [[1, 2, 2], [1, 0, 0]]
    else:
        assert batch.doc_BT is None and batch.src_doc_BS is None


def test_alignments_move_with_their_rows() -> None:
    pair = np.array([[0, 0], [1, 1]])
    rows = [[whole(example(2, src=2)), whole(example(2, src=2, align=pair))], [whole(example(2, src=2, align=pair))]]
    batch = collate_rows(rows, pad_id=7, src_pad_id=8, isolate=True)
    assert batch.align_M3 is not None
    assert batch.align_M3.tolist() == [[0, 2, 2], [0, 3, 3], [1, 0, 0], [1, 1, 1]]
    assert collate([example(2, src=2)], pad_id=7, src_pad_id=8).align_M3 is None


def test_features_are_padded_like_their_source() -> None:
    with_features = [example(2, src=n, features=np.full((n, 2), n, dtype=np.int32)) for n in (1, 2)]
    batch = collate(with_features, pad_id=7, src_pad_id=8)
    assert batch.features_BSF is not None
    assert batch.features_BSF.tolist() == [[[1, 1], [0, 0]], [[2, 2], [2, 2]]]


def test_targets_are_counted_by_corpus() -> None:
    rows = [[whole(example(3, corpus=1)), whole(example(2, corpus=0))], [whole(example(4, corpus=1))]]
    batch = collate_rows(rows, pad_id=7, src_pad_id=8, isolate=True)
    assert batch.corpus_P2 is not None and batch.corpus_P2.tolist() == [[1, 2], [0, 1], [1, 3]]
