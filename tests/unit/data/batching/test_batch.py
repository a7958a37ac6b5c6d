"""Batches: ids, labels, truncation and padding."""

from __future__ import annotations

import pytest
import torch

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.batching.collate import collate
from onmt_llm.data.bucket import cut_batches
from onmt_llm.data.example import Encoder, Example
from onmt_llm.errors import ConfigError
from onmt_llm.text.segment import Segment
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec

BOS, EOS, A, B, C = 2, 3, 4, 5, 6


def seg(tokens: str, train_on: bool = True) -> Segment:
    return Segment(tokens=tokens.split(), train_on=train_on)


def rows(encoded) -> tuple[list[int], list[int]]:
    return encoded.tgt.tolist(), encoded.labels.tolist()


class TestEncoder:
    @pytest.mark.parametrize(
        ("segments", "tgt", "labels"),
        [
            ([seg("a b")], [BOS, A, B], [A, B, EOS]),
            ([seg("a", False), seg("b")], [BOS, A, B], [-100, B, EOS]),
            ([seg("a"), seg("b", False)], [BOS, A, B], [A, -100, -100]),
            ([seg("a", False), seg("b"), seg("c", False), seg("a")], [BOS, A, B, C, A], [-100, B, -100, A, EOS]),
            ([seg("<s> a </s>")], [BOS, A], [A, EOS]),
            ([seg("a", False), seg("")], [BOS, A], [-100, EOS]),
        ],
    )
    def test_language_model(self, vocab, segments, tgt, labels):
        encoder = Encoder(make_codec("lm", vocab))
        assert rows(encoder(Example(segments))) == (tgt, labels)

    def test_language_model_without_bos(self, vocab):
        encoder = Encoder(make_codec("lm", vocab, add_bos=False))
        assert rows(encoder(Example([seg("a b c")]))) == ([A, B, C], [B, C, EOS])

    def test_encoder_decoder_and_unknown_tokens(self, vocab):
        encoder = Encoder(make_codec("seq2seq", vocab))
        encoded = encoder(Example([seg("a zz")], [seg("b"), seg("yy")]))
        assert encoded is not None and encoded.src is not None
        assert encoded.src.tolist() == [A, 0] and encoded.unknown == 2
        assert rows(encoded) == ([BOS, B, 0], [B, 0, EOS])
        assert encoder(Example([seg("")], [seg("b")])) is None and encoder(Example([seg("a")])) is None

    def test_the_vocabulary_must_hold_what_the_task_needs(self):
        with pytest.raises(ConfigError, match="starts a target"):
            Encoder(make_codec("lm", Vocab(["a"], SpecialTokens())))
        with pytest.raises(ConfigError, match="ends a target"):
            Encoder(make_codec("seq2seq", Vocab(["<s>"], SpecialTokens())))


class TestCutting:
    @pytest.mark.parametrize(
        ("widths", "size", "kind", "multiple", "lengths"),
        [
            ([1] * 5, 2, "sents", 1, [2, 2, 1]),
            ([1, 2, 3, 4, 4, 9, 20], 12, "tokens", 1, [3, 2, 1, 1]),
            ([1] * 20, 10, "sents", 8, [8, 8, 4]),
            ([2] * 12, 10, "tokens", 4, [4, 4, 4]),
            ([], 4, "sents", 1, []),
        ],
    )
    def test_lengths(self, widths, size, kind, multiple, lengths):
        cuts = cut_batches(widths, batch_size=size, batch_type=kind, multiple=multiple)
        assert [end - start for start, end in cuts] == lengths
        assert [0, *(end for _, end in cuts)] == [*(start for start, _ in cuts), len(widths)]


def test_collate_pads_on_the_right_and_counts_targets(vocab):
    encoder = Encoder(make_codec("seq2seq", vocab))
    examples = [encoder(Example([seg("a")], [seg("b c")])), encoder(Example([seg("a b")], [seg("c")]))]
    batch = Batch.of(collate([example for example in examples if example], pad_id=1, src_pad_id=1)).to("cpu")
    assert isinstance(batch, Batch) and (batch.num_targets, batch.num_examples) == (5, 2)
    assert batch.src_BS is not None and batch.src_mask_BS is not None and batch.doc_BT is None
    assert batch.src_BS.tolist() == [[A, 1], [A, B]] and batch.src_mask_BS.tolist() == [[True, False], [True, True]]
    assert batch.tgt_BT.tolist() == [[BOS, B, C], [BOS, C, 1]] and batch.tgt_BT.dtype == torch.int64
    assert batch.labels_BT.tolist() == [[B, C, EOS], [C, EOS, -100]]
