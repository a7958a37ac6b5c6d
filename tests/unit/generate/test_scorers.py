"""Metrics: the figures of sacrebleu, and errors for unknown names and missing packages."""

from __future__ import annotations

import sys

import pytest

from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.generate.scorers import open_scorers

PREDICTIONS, REFERENCES = ["the cat sat on the mat", "hello"], ["the cat sat on a mat", "hello there"]


def test_figures_are_those_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    bleu, chrf, ter = open_scorers(["BLEU", "CHRF", "TER"])
    for scorer, function in ((bleu, "corpus_bleu"), (chrf, "corpus_chrf"), (ter, "corpus_ter")):
        expected = getattr(sacrebleu, function)(PREDICTIONS, [REFERENCES]).score
        assert scorer.score(PREDICTIONS, REFERENCES) == pytest.approx(expected)
    assert (bleu.higher_is_better, chrf.higher_is_better, ter.higher_is_better) == (True, True, False)
    assert bleu.score(REFERENCES, REFERENCES) == pytest.approx(100) and ter.score(REFERENCES, REFERENCES) == 0


def test_rouge_is_the_mean_f_measure_of_rouge_score() -> None:
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    kinds = {"ROUGE1": "rouge1", "ROUGE2": "rouge2", "ROUGEL": "rougeL", "ROUGELSUM": "rougeLsum"}
    theirs = rouge.RougeScorer([*kinds.values()])
    pairs = [("the cat sat\non the mat", "on a mat\nthe cat sat"), ("hello", "hello there")]
    found = [theirs.score(reference, prediction) for prediction, reference in pairs]
    for scorer in open_scorers([*kinds]):
        expected = 100 * sum(scores[kinds[scorer.name]].fmeasure for scores in found) / 2
        assert scorer.of_texts(*zip(*pairs, strict=True)) == pytest.approx(expected)
    whole, by_lines = (scorer.of_texts(*zip(*pairs, strict=True)) for scorer in open_scorers(["ROUGEL", "ROUGELSUM"]))
    assert whole < by_lines, "line breaks separate the sentences of ROUGE-Lsum"


def test_exact_match_compares_whole_answers() -> None:
    (scorer,) = open_scorers(["EXACT_MATCH"])
    assert scorer.of_texts(["a b", "c", " d "], ["a b", "C", "d"]) == pytest.approx(200 / 3)


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="'BLUE' is not a known metric; known are: BLEU, CHRF, EXACT_MATCH, ROUGE1"
    ) as error:
        open_scorers(["BLUE"])
    assert error.value.hint == "did you mean 'BLEU'?"


def test_a_missing_package_is_found_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UnsupportedError, match="the metric CHRF needs the package 'sacrebleu'"):
        open_scorers(["CHRF"])
