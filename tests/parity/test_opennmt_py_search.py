"""Beam search against OpenNMT-py 3.5.1: the five best hypotheses of 50 sentences, made by tests/oracle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import onmt_llm
from onmt_llm.checkpoint.convert import convert
from onmt_llm.config.generate import GenerationConfig

DATA = Path(__file__).parents[1] / "data" / "opennmt"


@pytest.mark.parametrize("penalty", ["avg", "wu"])
def test_the_five_best_answers_are_the_same(tmp_path: Path, penalty: str) -> None:
    expected = json.loads((DATA / "reverse.beams.json").read_text(encoding="utf-8"))
    theirs = expected[penalty]
    engine = onmt_llm.open_engine(str(convert(DATA / "reverse.pt", tmp_path / "ours")))
    options = GenerationConfig(beam_size=5, n_best=5, length_penalty=penalty, alpha=theirs["alpha"], max_length=20)
    sources = [engine.codec.encode(line) for line in expected["sources"]]
    found = list(engine.generate(sources, options))
    assert len(found) == 50
    assert [[" ".join(answer.tokens) for answer in answers] for answers in found] == theirs["answers"]
    for answers, scores in zip(found, theirs["scores"], strict=True):
        assert [answer.score for answer in answers] == pytest.approx(scores, abs=1e-4)
