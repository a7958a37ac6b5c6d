"""Scores of continuations: those of whole sequences, while common beginnings are read once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from onmt_llm.cli.release import main as release
from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.generate.open import open_engine
from onmt_llm.generate.torch import continuations as module

VOCAB = tiny.tokens(24)


def requests(seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """Contexts of a few families with long common beginnings, each with several continuations, shuffled."""
    rng = random.Random(seed)

    def text(least: int, most: int) -> list[str]:
        return rng.choices(VOCAB[3:], k=rng.randint(least, most))

    contexts = [["<s>"], *(["<s>", *text(1, 60)] for _ in range(5))]
    for _ in range(3):
        beginning = ["<s>", *text(20, 90)]
        contexts += [beginning, *([*beginning, *text(1, 40)] for _ in range(6))]
    pairs = [(context, text(1, 4)) for context in contexts for _ in range(3)]
    pairs += [(contexts[-1], [*text(1, 1) * 2, last]) for last in VOCAB[3:9]]  # continuations with a common beginning
    pairs += pairs[:3]
    rng.shuffle(pairs)
    return [context for context, _ in pairs], [continuation for _, continuation in pairs]


def expected(engine: Any, context: Sequence[str], continuation: Sequence[str]) -> tuple[float, bool]:
    """Log probability and greediness by the logits of the whole sequence."""
    logits = torch.tensor(engine.logits([*context, *continuation]))[len(context) - 1 : -1]
    ids = torch.tensor(engine.codec.vocab.ids(continuation))
    chosen = logits.log_softmax(-1)[range(len(ids)), ids]
    return float(chosen.sum()), bool((logits.argmax(-1) == ids).all())


def check(engine: Any, contexts: Sequence[Sequence[str]], continuations: Sequence[Sequence[str]]) -> None:
    scores = engine.score_continuations(contexts, continuations)
    wanted = [expected(engine, *pair) for pair in zip(contexts, continuations, strict=True)]
    assert [score.log_prob for score in scores] == pytest.approx([log_prob for log_prob, _ in wanted], abs=1e-4)
    assert [score.is_greedy for score in scores] == [greedy for _, greedy in wanted]
    assert [score.tokens for score in scores] == list(map(len, continuations))


LLAMA, WINDOW, TABLE = tiny.llama(), tiny.llama(sliding_window=16), tiny.config(position="learned")


@pytest.mark.parametrize(("model", "worth"), [(LLAMA, 2), (LLAMA, 64), (LLAMA, 10**9), (WINDOW, 2), (TABLE, 2)])
def test_scores_are_those_of_whole_sequences(
    model: Any, worth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WORTH", worth)
    engine = open_engine(tiny.write_checkpoint(tmp_path / "lm", model, VOCAB))
    contexts, continuations = requests()
    greedy = [engine.codec.vocab[int(engine.logits(context)[-1].argmax())] for context in contexts[:5]]
    check(engine, [*contexts, *contexts[:5]], [*continuations, *([token] for token in greedy)])


def test_common_beginnings_are_read_once(tmp_path: Path) -> None:
    engine: Any = open_engine(tiny.write_checkpoint(tmp_path / "lm", tiny.llama(), VOCAB))
    read: list[int] = []
    engine.model.decoder.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[0] * args[0].shape[1]))
    beginning = ["<s>", *VOCAB[3:23] * 5]
    contexts = [[*beginning, token] for token in VOCAB[3:13] for _ in range(4)]
    engine.score_continuations(contexts, [[token] for token in VOCAB[3:7]] * 10)
    assert sum(read) == len(beginning) + 10


def test_a_release_gives_the_same_scores(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "lm", tiny.llama(), VOCAB)
    assert (
        release(["-model", str(model), "-output", str(tmp_path / "ct2"), "-quantization", "float32", "-verify", "off"])
        == 0
    )
    check(open_engine(tmp_path / "ct2"), *requests(1))


def test_what_cannot_be_scored_is_told(tmp_path: Path) -> None:
    engine = open_engine(tiny.write_checkpoint(tmp_path / "lm", tiny.llama(), VOCAB))
    with pytest.raises(
        DataError, match="A continuation to be scored must have at least one token, but number 2 is empty"
    ):
        engine.score_continuations([["<s>"]] * 2, [["w1"], []])
    translator = open_engine(tiny.write_checkpoint(tmp_path / "seq2seq", tiny.seq2seq(), VOCAB))
    with pytest.raises(UnsupportedError, match="must be decoder-only"):
        translator.score_continuations([["<s>"]], [["w1"]])
