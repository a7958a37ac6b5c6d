"""deduplicate: copies within a bucket."""

from __future__ import annotations

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.build import build_transforms
from onmt_llm.text.segment import Segment
from tiny_codecs import make_context

SENTENCE = "the quick brown fox jumps over the lazy dog and runs into the deep dark forest before night falls again"


def build(**own):
    return build_transforms(["deduplicate"], {}, CorpusConfig(options=own), make_context(task="seq2seq"))[0]


def kept(transform, *texts: str, start: int = 1) -> list[int]:
    """Places of the examples that are kept."""
    examples = [
        Example([Segment(src)], [Segment(tgt)], line=line)
        for line, (src, _, tgt) in enumerate((text.partition("|") for text in texts), start)
    ]
    return [example.line - start for example in transform.batch(examples)]


def test_exact_copies_are_dropped_and_counted() -> None:
    transform = build()
    assert kept(transform, "a|x", "b|x", "a|x", "a|y") == [0, 1, 3]
    assert transform.dropped == {"duplicate": 1}


@pytest.mark.parametrize(("side", "places"), [("src", [0, 2]), ("tgt", [0, 1])])
def test_by_one_side(side: str, places: list[int]) -> None:
    assert kept(build(dedup_on=side), "a|x", "a|y", "b|x") == places


def test_a_line_is_no_copy_of_itself_when_the_corpus_begins_again() -> None:
    transform = build()
    first, second = Example([Segment("a")], line=1), Example([Segment("a")], line=2)
    again = [Example([Segment("a")], line=line) for line in (1, 2)]
    assert [example.line for example in transform.batch([first, second, *again])] == [1, 1]


def test_nothing_is_remembered_from_bucket_to_bucket() -> None:
    transform = build()
    assert kept(transform, "a|x") == kept(transform, "a|x", start=2) == [0]


class TestNear:
    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("datasketch")

    def test_texts_that_differ_a_little_are_copies(self) -> None:
        transform = build(dedup_method="near")
        twice = f"{SENTENCE} while {SENTENCE}"
        other = "a completely different sentence about ships that sail over the sea to find a new land in the far west"
        assert kept(transform, f"{twice}|x", f"{twice} .|x", f"{other}|x", f"{twice}|x") == [0, 2]
        assert transform.dropped == {"near_duplicate": 2}

    def test_the_threshold(self) -> None:
        # 3-grams of words: 17 of 20 the same
        changed = SENTENCE.replace("lazy", "idle")
        for threshold, places in ((0.95, [0, 1]), (0.5, [0])):
            assert kept(build(dedup_method="near", dedup_threshold=threshold), f"{SENTENCE}|", f"{changed}|") == places

    def test_short_and_empty_texts(self) -> None:
        assert kept(build(dedup_method="near", dedup_on="src"), "a|x", "b|x", "a|y", "|z") == [0, 1, 3]
