"""The pipeline from files to batches: order, counts, exact resume, and refusals."""

from __future__ import annotations

import json
import logging
from itertools import islice

import pytest
import torch

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.example import IGNORED
from onmt_llm.data.transforms.filters import FilterTooLongConfig
from onmt_llm.data.transforms.tokenize import Tokenize
from onmt_llm.errors import ConfigError, DataError

PROMPT = "### Instruction:｟newline｠a b｟newline｠｟newline｠### Response:｟newline｠"


def rows(batch: Batch) -> tuple:
    src = None if batch.src_BS is None else batch.src_BS.tolist()
    return src, batch.tgt_BT.tolist(), batch.labels_BT.tolist(), batch.num_targets, batch.num_examples


def take(pipeline, number: int) -> list[tuple]:
    return [rows(batch) for batch in islice(iter(pipeline), number)]


@pytest.fixture
def two_corpora(write, words):
    return {
        "x": CorpusConfig(path_src=write("x", words(37, 1)), weight=3),
        "y": CorpusConfig(path_src=write("y", words(11, 2)), transforms=["filtertoolong"]),
    }


LIMIT = {"filtertoolong": FilterTooLongConfig(src_seq_length=10)}
THREAD = {"worker_type": "thread"}  # processes have tests of their own
TOKENS = {"batch_type": "tokens", "batch_size": 40, "bucket_size": 16}


class TestTraining:
    @pytest.mark.parametrize("packing", ["off", "pack", "split", "wrap"])
    @pytest.mark.parametrize("workers", [{"num_workers": 0}, {"num_workers": 1, "worker_type": "process"}])
    def test_every_trained_position_is_known_by_its_corpus(self, make_pipeline, write, packing, workers):
        # each corpus has a word of its own, and BOS or EOS stand beside one
        lengths = [1, 9, 4, 6, 2]
        corpora = {
            name: CorpusConfig(path_src=write(name, "".join(f"{' '.join(name * n)}\n" for n in lengths * 4)), weight=w)
            for name, w in (("a", 1), ("b", 3), ("c", 1))
        }
        batching = {"packing": packing, "packing_length": 8, "isolate_documents": packing == "split", **workers}
        pipeline = make_pipeline(corpora, batching=batching)
        seen = set()
        for batch in islice(iter(pipeline), 12):
            tokens = torch.stack([batch.tgt_BT, batch.labels_BT])[:, batch.labels_BT != IGNORED]
            names = torch.where(tokens[0] > 3, tokens[0], tokens[1]) - 4
            assert torch.equal(torch.repeat_interleave(*batch.corpus_P2.unbind(1)), names)
            seen.update(names.tolist())
        assert seen == {0, 1, 2}
        assert next(iter(make_pipeline({"a": corpora["a"]}, batching=batching))).corpus_P2 is None

    @pytest.mark.parametrize("batching", [{}, TOKENS])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_restored_run_continues_with_the_very_next_batch(self, make_pipeline, two_corpora, batching, workers):
        def make(num_workers):
            return make_pipeline(
                two_corpora, batching={**batching, **THREAD, "num_workers": num_workers}, options=LIMIT
            )

        expected = take(make(0), 60)
        for stop in (0, 1, 3, 4, 7, 19, 30):
            first = make(workers)
            assert take(first, stop) == expected[:stop]
            state = json.loads(json.dumps(first.state_dict()))
            second = make(2 - workers)
            second.load_state_dict(state)
            assert take(second, 20) == expected[stop : stop + 20]
            # iterating again continues too
            assert take(first, 5) == expected[stop : stop + 5]

    @pytest.mark.parametrize("done", [1, 2])
    def test_the_rest_of_a_bucket_can_be_skipped(self, make_pipeline, write, words, done):
        corpora = {"x": CorpusConfig(path_src=write("x", words(32, 3)))}
        two_a_bucket = {"batch_size": 4, "bucket_size": 8}
        expected = take(make_pipeline(corpora, batching=two_a_bucket), 4)
        pipeline = make_pipeline(corpora, batching=two_a_bucket)
        take(pipeline, done)
        pipeline.skip_bucket()
        assert take(pipeline, 2) == expected[2:]

    def test_batches_are_shuffled_by_seed_and_every_example_comes_once_an_epoch(self, make_pipeline, write, words):
        corpora = {"x": CorpusConfig(path_src=write("x", words(64, 3)))}
        batches = take(make_pipeline(corpora), 16)
        assert take(make_pipeline(corpora), 16) == batches != take(make_pipeline(corpora, seed=8), 16)
        widths = [len(tgt[0]) for _, tgt, *_ in batches]
        assert widths != sorted(widths)
        ordered = sorted(str(row[: row.index(3) + 1]) for _, _, labels, *_ in batches for row in labels)
        again = sorted(
            str(row[: row.index(3) + 1])
            for _, _, labels, *_ in take(make_pipeline(corpora, training=False), 99)
            for row in labels
        )
        assert ordered == again

    def test_a_batch_of_tokens_keeps_within_its_area(self, make_pipeline, two_corpora):
        for _, tgt, *_ in take(make_pipeline(two_corpora, batching=TOKENS), 50):
            assert len(tgt) * len(tgt[0]) <= 40

    def test_counts_add_up_and_epochs_are_logged(self, make_pipeline, two_corpora, caplog, monkeypatch):
        monkeypatch.setattr("onmt_llm.data.pipeline._EPOCH_PAUSE", 0)
        pipeline = make_pipeline(two_corpora, options=LIMIT)
        with caplog.at_level(logging.INFO, logger="onmt_llm"):
            batches = take(pipeline, 60)
        counts = pipeline.counts
        assert all(each.read == each.kept + sum(each.dropped.values()) for each in counts.values())
        assert counts["y"].dropped["too_long"] > 0 and counts["x"].dropped == {}
        assert sum(each.kept for each in counts.values()) >= sum(batch[4] for batch in batches)
        assert "Epoch 2 of corpus 'y'." in caplog.text and "too_long" in pipeline.summary()

    def test_changed_batch_options_begin_the_interrupted_bucket_anew(self, make_pipeline, two_corpora, caplog):
        first = make_pipeline(two_corpora)
        take(first, 2)
        second = make_pipeline(two_corpora, batching={"batch_size": 8})
        second.load_state_dict(first.state_dict())
        assert "read again" in caplog.text
        assert take(second, 2) == take(make_pipeline(two_corpora, batching={"batch_size": 8}), 2)


class TestValidation:
    def test_every_pass_is_the_same_in_order_of_length(self, make_pipeline, write, words):
        corpora = {"valid": CorpusConfig(path_src=write("v", words(30, 4)))}
        pipeline = make_pipeline(corpora, training=False, batching={"bucket_size": 64, "valid_batch_size": 7})
        first = take(pipeline, 99)
        assert take(pipeline, 99) == first
        assert [batch[4] for batch in first] == [7, 7, 7, 7, 2]
        widths = [len(tgt[0]) for _, tgt, *_ in first]
        assert widths == sorted(widths)
        assert (pipeline.counts["valid"].read, pipeline.counts["valid"].kept) == (30, 30)

    def test_parallel_text(self, make_pipeline, write):
        corpora = {"valid": CorpusConfig(path_src=write("s", "a b\nc\n"), path_tgt=write("t", "d\ne f g\n"))}
        ((src, tgt, labels, targets, _),) = take(make_pipeline(corpora, training=False, task="seq2seq"), 9)
        assert src == [[4, 5], [6, 1]] and tgt == [[2, 7, 1, 1], [2, 8, 9, 10]] and targets == 6
        assert labels == [[7, 3, -100, -100], [8, 9, 10, 3]]


class TestMasks:
    def test_only_answers_are_trained(self, make_pipeline, write):
        corpora = {"x": CorpusConfig(path_src=write("x", f"{PROMPT}c d\n"))}
        data = {"zero_out_prompt_loss": True, "transforms": ["insert_mask_before_placeholder"]}
        (batch,) = take(make_pipeline(corpora, data, training=False), 9)
        assert [label for label in batch[2][0] if label != -100] == [6, 7, 3]

    def test_a_first_bucket_without_a_trained_token_is_refused(self, make_pipeline, write):
        corpora = {"x": CorpusConfig(path_src=write("x", "a b｟_mask_before_｠\n" * 3))}
        with pytest.raises(DataError, match="At least one token of the first bucket must be trained"):
            take(make_pipeline(corpora, {"zero_out_prompt_loss": True}), 1)

    def test_a_doubled_bos_is_noticed(self, make_pipeline, vocab, write, caplog):
        class Doubling:
            control_tokens = frozenset({"<s>", "</s>", "<blank>"})
            restarts_after_control = False

            def encode(self, text, *, continuation=False):
                return ["<s>", "<s>", *text.split()]

            def encode_batch(self, texts):
                return [self.encode(text) for text in texts]

        corpora = {"x": CorpusConfig(path_src=write("x", "a b\n"))}
        pipeline = make_pipeline(corpora, training=False)
        pipeline._corpora[0].transforms = [Tokenize(Doubling(), Doubling(), joint=True)]
        take(pipeline, 1)
        assert "BOS twice" in caplog.text

    @pytest.mark.parametrize(("text", "warned"), [("a zz zz zz\n", True), ("a b c d zz\n" * 9, False)])
    def test_a_vocabulary_that_lacks_most_tokens_is_noticed(self, make_pipeline, write, caplog, text, warned):
        take(make_pipeline({"x": CorpusConfig(path_src=write("x", text))}, training=False), 1)
        assert ("'x'" in caplog.text and "are not in the vocabulary" in caplog.text) == warned


class TestRefusals:
    def test_a_corpus_that_yields_nothing_ends_the_run(self, make_pipeline, write, words):
        corpora = {
            "good": CorpusConfig(path_src=write("g", words(20, 5))),
            "long": CorpusConfig(path_src=write("l", "a b c d e f g h a b c\n" * 5), transforms=["filtertoolong"]),
        }
        with pytest.raises(DataError, match=r"'long' must yield at least one example.*too_long"):
            take(make_pipeline(corpora, options=LIMIT), 200)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_empty_examples_are_counted_or_refused_with_their_place(self, make_pipeline, write, caplog, workers):
        corpora = {"x": CorpusConfig(path_src=write("x", "a\n\n  \nb\n"))}

        def make(level):
            return make_pipeline(corpora, {"skip_empty_level": level}, {"num_workers": workers}, training=False)

        pipeline = make("warning")
        take(pipeline, 9)
        assert pipeline.counts["x"].dropped == {"empty": 2} and pipeline.counts["x"].kept == 2
        assert caplog.text.count("empty examples") == 1 and "x:2" in caplog.text
        with pytest.raises(DataError, match=r"x:2 is one"):
            take(make("error"), 9)

    def test_everything_wrong_with_files_is_known_before_the_first_batch(self, make_pipeline, write):
        corpora = {"x": CorpusConfig(path_src=write("s", "1\n2\n"), path_tgt=write("t", "1\n"))}
        with pytest.raises(DataError, match="same number of lines"):
            make_pipeline(corpora, task="seq2seq")
        with pytest.raises(ConfigError, match="at least one corpus"):
            make_pipeline({})

    def test_a_template_needs_its_control_tokens(self, make_pipeline, write):
        corpora = {"x": CorpusConfig(path_jsonl=write("j", '{"prompt": "a", "answer": "b"}'), template="chatml")}
        with pytest.raises(ConfigError, match=r"'chatml', but lacks <\|im_end\|>"):
            make_pipeline(corpora)

    def test_unknown_tokens_are_counted(self, make_pipeline, write):
        pipeline = make_pipeline({"x": CorpusConfig(path_src=write("x", "a zz\n"))}, training=False)
        take(pipeline, 9)
        assert pipeline.counts["x"].unknown == 1 and "1 unknown" in pipeline.summary()
