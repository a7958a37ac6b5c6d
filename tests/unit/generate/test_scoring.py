"""Scores of given texts, with an engine whose probabilities are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from onmt_llm.generate.scoring import LineScore, perplexity, score_pairs, score_texts

PROBABILITIES = {"a": -1.0, "b": -2.0, "</s>": -0.5}


class Fixed:
    """Every token has the probability of `PROBABILITIES`; remembers what it was given."""

    def __init__(self, model: Any, *, bos: str | None = "<s>", eos: str | None = "</s>") -> None:
        specials = SimpleNamespace(bos=bos, eos=eos)
        self.codec = SimpleNamespace(
            config=SimpleNamespace(model=model, specials=specials),
            vocab=PROBABILITIES,
            start_tokens=[bos] if bos else [],
        )
        self.given: list[tuple[list[list[str]], list[list[str]] | None]] = []

    def score(self, sequences: Sequence[Sequence[str]], *, sources: Any = None) -> list[list[float]]:
        self.given.append(([list(sequence) for sequence in sequences], sources and [list(s) for s in sources]))
        return [[PROBABILITIES[token] for token in sequence[1:]] for sequence in sequences]


def test_a_text_is_scored_from_its_second_token_to_the_end_token() -> None:
    engine: Any = Fixed(tiny.llama())
    assert score_texts(engine, [["<s>", "a", "b"], []]) == [LineScore(-3.5, 3), LineScore(0.0, 0)]
    assert engine.given == [([["<s>", "a", "b", "</s>"], []], None)]


def test_without_an_end_token_in_the_vocabulary_none_is_scored() -> None:
    for eos in (None, "<none>"):
        engine: Any = Fixed(tiny.llama(), eos=eos)
        assert score_texts(engine, [["<s>", "a"]]) == [LineScore(-1.0, 1)]


def test_a_language_model_reads_the_target_behind_the_source() -> None:
    engine: Any = Fixed(tiny.llama())
    scores = score_pairs(engine, [["<s>", "a"], [], ["<s>"]], [["b"], ["a"], []])
    assert scores == [LineScore(-2.5, 2), LineScore(0.0, 0), LineScore(-0.5, 1)]


@pytest.mark.parametrize(("bos", "tokens"), [("<s>", 2), (None, 1)])
def test_an_encoder_decoder_gets_sources_apart_and_skips_pairs_without_one(bos: str | None, tokens: int) -> None:
    engine: Any = Fixed(tiny.seq2seq(), bos=bos)
    scores = score_pairs(engine, [["a", "b"], []], [["b"], ["a"]])
    assert [score.tokens for score in scores] == [tokens, 0]
    ((sequences, sources),) = engine.given
    assert sequences == [[*([bos] if bos else []), "b", "</s>"]] and sources == [["a", "b"]]


def test_perplexity_is_a_number_infinite_or_none() -> None:
    assert LineScore(-3.0, 2).perplexity == pytest.approx(math.exp(1.5))
    assert math.isnan(LineScore(0.0, 0).perplexity)
    assert perplexity(1e6) == math.inf and perplexity(0) == 1
