"""Packed rows: nothing lost, nothing too long, documents numbered, alignments and features in place."""

from __future__ import annotations

import logging
import random
from itertools import islice

import numpy as np
import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.batching.collate import collate_rows, whole
from onmt_llm.data.batching.packing import pack_rows, row_width
from onmt_llm.data.example import Encoded
from onmt_llm.errors import ConfigError


def example(length: int, src: int | None = None, first: int = 0) -> Encoded:
    """Tokens `first`, `first` + 1, ...; every label is the token after it."""
    ids = np.arange(first, first + length + 1, dtype=np.int32)
    source = None if src is None else np.arange(src, dtype=np.int32)
    return Encoded(source, ids[:-1], ids[1:], 0)


def drawn(number: int, *, longest: int = 12, src: bool = False) -> list[Encoded]:
    draw = random.Random(number)
    return [
        example(draw.randint(1, longest), draw.randint(1, longest) if src else None, 1000 * index)
        for index in range(number)
    ]


def lengths(rows) -> list[list[int]]:
    return [[part.end - part.start for part in row] for row in rows]


@pytest.mark.parametrize(
    ("packing", "sizes", "expected"),
    [
        ("pack", [3, 5, 4, 4, 2, 2], [[5, 3], [4, 4], [2, 2]]),
        ("pack", [9, 3], [[9], [3]]),
        ("split", [9, 3, 19], [[8], [8], [8], [3, 3, 1]]),
        ("wrap", [3, 9, 6], [[3, 5], [4, 4], [2]]),
    ],
)
def test_rows_of_eight(packing, sizes, expected):
    assert lengths(pack_rows([example(size) for size in sizes], packing, 8)) == expected


@pytest.mark.parametrize("packing", ["pack", "split", "wrap"])
def test_every_position_is_in_one_row(packing):
    examples = drawn(200)
    rows = pack_rows(examples, packing, 8)
    got = sorted(token for row in rows for part in row for token in part.example.tgt[part.start : part.end])
    assert got == sorted(token for each in examples for token in each.tgt)
    assert all(row_width(row) <= 8 or (packing == "pack" and len(row) == 1) for row in rows)
    full = sum(row_width(row) for row in rows) / (8 * len(rows))
    assert full > (0.99 if packing == "wrap" else 0.9)


def test_pairs_fit_on_both_sides_and_stay_whole():
    examples = drawn(300, src=True)
    rows = pack_rows(examples, "pack", 16)
    assert sorted(part.example.tgt[0] for row in rows for part in row) == sorted(each.tgt[0] for each in examples)
    assert all(row_width(row) <= 16 for row in rows)
    assert all(part == whole(part.example) for row in rows for part in row)
    assert sum(len(each.tgt) for each in examples) / (16 * len(rows)) > 0.85


def test_documents_features_and_alignments_of_packed_rows():
    one, two, three = example(2, 3, 10), example(3, 1, 20), example(1, 2, 30)
    for each in (one, two, three):
        assert each.src is not None
        each.features = np.stack([each.src, each.src + 5], axis=1)
    two.align = np.array([[0, 0], [2, 0]], dtype=np.int32)
    rows = [[whole(one), whole(two)], [whole(three)]]
    arrays = collate_rows(rows, pad_id=9, src_pad_id=8, isolate=True)
    assert arrays.tgt_BT.tolist() == [[10, 11, 20, 21, 22], [30, 9, 9, 9, 9]]
    assert arrays.labels_BT.tolist() == [[11, 12, 21, 22, 23], [31, -100, -100, -100, -100]]
    assert arrays.doc_BT.tolist() == [[1, 1, 2, 2, 2], [1, 0, 0, 0, 0]]
    assert arrays.src_BS.tolist() == [[0, 1, 2, 0], [0, 1, 8, 8]]
    assert arrays.src_doc_BS.tolist() == [[1, 1, 1, 2], [1, 1, 0, 0]]
    assert arrays.src_mask_BS.tolist() == [[True] * 4, [True, True, False, False]]
    assert arrays.features_BSF.tolist() == [[[0, 5], [1, 6], [2, 7], [0, 5]], [[0, 5], [1, 6], [0, 0], [0, 0]]]
    assert arrays.align_M3.tolist() == [[0, 2, 3], [0, 4, 3]]
    assert (arrays.num_targets, arrays.num_examples) == (6, 3)
    assert collate_rows(rows, pad_id=9, src_pad_id=8, isolate=False).doc_BT is None


class TestPipeline:
    @pytest.mark.parametrize("packing", ["pack", "split", "wrap"])
    def test_batches_of_rows(self, make_pipeline, write, words, packing):
        corpora = {"x": CorpusConfig(path_src=write("x", words(64, 1)))}
        batching = {"packing": packing, "packing_length": 16, "batch_type": "tokens", "batch_size": 48}
        pipeline = make_pipeline(corpora, {"epochs": 1}, {**batching, "bucket_size": 64})
        batches = list(pipeline)
        assert all(batch.tgt_BT.shape[0] <= 3 and batch.tgt_BT.shape[1] <= 16 for batch in batches)
        assert sum(batch.num_examples for batch in batches) == 64
        assert sum(batch.num_targets for batch in batches) == pipeline.counts["x"].trained
        padded = list(make_pipeline(corpora, {"epochs": 1}, {"bucket_size": 64}))
        assert sum(batch.num_targets for batch in padded) == pipeline.counts["x"].trained
        assert len(batches) <= -(-pipeline.counts["x"].tokens // 48) + 1

    def test_validation_is_never_packed(self, make_pipeline, write, words):
        corpora = {"valid": CorpusConfig(path_src=write("v", words(9, 2)))}
        batching = {"packing": "wrap", "packing_length": 16}
        assert all(batch.doc_BT is None for batch in make_pipeline(corpora, batching=batching, training=False))

    def test_what_cannot_be_packed_is_refused_or_said(self, make_pipeline, write, caplog):
        corpora = {"x": CorpusConfig(path_src=write("s", "a b c d e f g h\n"), path_tgt=write("t", "a\n"))}
        with pytest.raises(ConfigError, match="packing must be 'off' or 'pack'"):
            make_pipeline(corpora, batching={"packing": "wrap", "packing_length": 4}, task="seq2seq")
        with pytest.raises(ConfigError, match="packing_length must be given"):
            make_pipeline(corpora, batching={"packing": "pack"}, task="seq2seq")
        pipeline = make_pipeline(corpora, batching={"packing": "pack", "packing_length": 4}, task="seq2seq")
        with caplog.at_level(logging.INFO, logger="onmt_llm"):
            (batch,) = islice(pipeline, 1)
        assert batch.src_BS is not None and batch.src_BS.shape[1] == 8
        assert "more than a row of 4 (packing_length)" in caplog.text

    @pytest.mark.parametrize("training", [True, False])
    def test_what_is_too_long_names_the_option_that_says_so(self, make_pipeline, write, caplog, training):
        corpora = {"x": CorpusConfig(path_src=write("s", "a b c d e f g h\n"))}
        batching = {"batch_type": "tokens", "batch_size": 5, "valid_batch_size": 6}
        with caplog.at_level(logging.INFO, logger="onmt_llm"):
            next(iter(make_pipeline(corpora, batching=batching, training=training)))
        assert f"more than {'batch_size 5' if training else 'valid_batch_size 6'}:" in caplog.text
