"""Length penalties and limits, against numbers worked out by hand; prompts cut into batches."""

from __future__ import annotations

import random

import pytest

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.lengths import length_penalty, make_batches, max_answer_length

LENGTHS = [3, 0, 7, 7, 1, 2, 7, 0, 5]


@pytest.mark.parametrize(
    ("kind", "alpha", "length", "expected"),
    [("none", 1.0, 7, 1.0), ("avg", 1.0, 7, 8.0), ("avg", 0.5, 8, 3.0), ("wu", 1.0, 6, 2.0), ("wu", 2.0, 6, 4.0)],
)
def test_scores_are_divided_by(kind: str, alpha: float, length: int, expected: float) -> None:
    assert length_penalty(GenerationConfig(length_penalty=kind, alpha=alpha))(length) == pytest.approx(expected)


@pytest.mark.parametrize(("ratio", "source", "expected"), [(0, 9, 50), (2.0, 9, 23), (1.25, 3, 8), (100.0, 9, 50)])
def test_an_answer_is_limited_by_its_source(ratio: float, source: int, expected: int) -> None:
    assert max_answer_length(GenerationConfig(max_length=50, max_length_ratio=ratio), source) == expected


@pytest.mark.parametrize("same_length", [False, True])
@pytest.mark.parametrize(("batch_type", "batch_size"), [("sents", 1), ("sents", 3), ("tokens", 14), ("tokens", 1)])
def test_every_prompt_with_tokens_is_decoded_once(batch_type: str, batch_size: int, same_length: bool) -> None:
    draw = random.Random(1)
    for lengths in (LENGTHS, [draw.randrange(9) for _ in range(50)], []):
        batches = make_batches(lengths, batch_size=batch_size, batch_type=batch_type, same_length=same_length)
        assert sorted(place for batch in batches for place in batch) == [i for i, n in enumerate(lengths) if n]
        for batch in batches:
            longest = max(lengths[place] for place in batch)
            size = len(batch) * (longest if batch_type == "tokens" else 1)
            assert len(batch) == 1 or size <= batch_size
            assert not same_length or {lengths[place] for place in batch} == {longest}


def test_the_longest_come_first_in_their_order() -> None:
    assert make_batches(LENGTHS, batch_size=3, batch_type="sents") == [[2, 3, 6], [8, 0, 5], [4]]
    assert make_batches(LENGTHS, batch_size=14, batch_type="tokens") == [[2, 3], [6, 8], [0, 5, 4]]


def test_a_prompt_longer_than_a_batch_is_a_batch() -> None:
    assert make_batches([100, 2], batch_size=10, batch_type="tokens") == [[0], [1]]


def test_batches_hold_similar_lengths_and_every_prompt_but_empty_ones() -> None:
    lengths = [3, 0, 9, 4, 1, 9, 2]
    assert make_batches(lengths, batch_size=2, batch_type="sents") == [[2, 5], [3, 0], [6, 4]]
    assert make_batches(lengths, batch_size=12, batch_type="tokens") == [[2], [5], [3, 0, 6], [4]]
    assert make_batches([50], batch_size=12, batch_type="tokens") == [[0]]
    assert make_batches([2, 3, 2, 3], batch_size=9, batch_type="sents", same_length=True) == [[1, 3], [0, 2]]
    assert make_batches([], batch_size=1, batch_type="sents") == []
