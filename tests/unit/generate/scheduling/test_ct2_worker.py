"""Batches of CTranslate2 give each request the answer that the engine gives to its prompt alone."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.generate.open import open_engine
from onmt_llm.generate.scheduling.ct2_worker import Ct2Worker
from onmt_llm.generate.scheduling.scheduler import Scheduler
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.releasing import release

VOCAB = ["<unk>", "<s>", "</s>", "<end>", *(chr(ord("a") + i) for i in range(20))]
PROMPTS = [["<s>", "a", "b"], ["<s>"], ["<s>", *"qponmlkjihg"], [], ["<s>", *"cde"], ["<s>", *"ced"]]
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "shorter": {"max_length": 3},
    "one token": {"max_length": 1},
    "penalties": {"repetition_penalty": 1.5, "block_ngram_repeat": 2, "min_length": 6},
    "stop": {"stop": ["a", "c e"], "min_length": 3},
    "stop token": {"stop_tokens": ["f", "k"]},
    "beam": {"beam_size": 3, "n_best": 2},
}
SOURCE_OPTIONS = {
    **OPTIONS,
    "limited": {"max_length_ratio": 1.0, "min_length": 7},
    "limited beam": {"max_length_ratio": 1.0, "beam_size": 2},
    "replaced": {"replace_unk": True, "stop": ["b"]},
}
DRAWN = {"random_sampling_topk": 0, "random_sampling_temp": 2.0}


def options(kind: dict[str, Any]) -> GenerationConfig:
    return GenerationConfig(**{"max_length": 9, "max_length_ratio": 0, **kind})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ct2_worker")
    lm = tiny.config(vocab_size=26, norm="rmsnorm", position="rotary", activation="gelu")
    seq2seq = tiny.seq2seq(vocab_size=26)
    for name, model, bias in (("lm", lm, 0.0), ("seq2seq", seq2seq, 1.0)):
        tiny.write_checkpoint(folder / name, model, VOCAB, seed=5, scale=0.4, norm_bias=bias, stop_tokens=["<end>"])
        release(folder / name, folder / f"{name}_ct2", text=" ".join(VOCAB[4:]))
    return folder


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[str, Any]:
    return {name: open_engine(folder / f"{name}_ct2", device="cpu", threads=2) for name in ("lm", "seq2seq")}


def check(ticket: Ticket, expected: list[Hypothesis]) -> None:
    found = ticket.result(60)
    assert [(h.tokens, h.text, h.finish_reason, h.alignment) for h in found] == [
        (h.tokens, h.text, h.finish_reason, h.alignment) for h in expected
    ]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)
    deltas = ticket.take()
    assert "".join(delta.text for delta in deltas) == found[0].text
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [found[0].finish_reason]


@pytest.mark.parametrize("kind", ["lm", "seq2seq"])
def test_requests_with_any_options_do_not_change_each_other(kind: str, engines: dict[str, Any]) -> None:
    engine, chance = engines[kind], random.Random(2)
    kinds = OPTIONS if kind == "lm" else SOURCE_OPTIONS
    requests = [Request(prompt, options(one)) for prompt in PROMPTS for one in kinds.values()]
    chance.shuffle(requests)
    expected = [engine.generate([one.prompt], one.options)[0] for one in requests]
    before = set(threading.enumerate())
    with Scheduler(engine, max_queue=200) as scheduler:
        assert isinstance(scheduler._worker, Ct2Worker)
        tickets = [scheduler.submit(one) for one in requests]
        for ticket, answer in zip(tickets, expected, strict=True):
            check(ticket, answer)
        assert scheduler.statistics.running <= len(requests)
    assert scheduler.statistics.answered == len(requests)
    assert set(threading.enumerate()) <= before


def test_like_requests_share_a_batch_and_others_wait_their_turn(engines: dict[str, Any]) -> None:
    sizes, original = [], engines["lm"].decode_batch
    engine = engines["lm"].for_languages()

    def decode_batch(prompts: Any, *rest: Any) -> Any:
        sizes.append(len(prompts))
        return original(prompts, *rest)

    engine.decode_batch = decode_batch
    engine.for_languages = lambda src, tgt: engine
    lengths = [options({"max_length": n % 5 + 1, "stop": ["abc"] * (n % 2)}) for n in range(10)]
    others = [options({"min_length": 2})] * 3
    with Scheduler(engine) as scheduler:
        started = scheduler.submit(Request(PROMPTS[0], options({"max_length": 100, "min_length": 100})))
        while started.first_token is None:
            assert not started.is_done
        tickets = [scheduler.submit(Request(PROMPTS[4], one)) for one in [*lengths[:5], *others, *lengths[5:]]]
        for ticket in tickets:
            ticket.result(60)
    assert sizes == [1, 10, 3]


@pytest.mark.parametrize("kind", ["lm", "seq2seq"])
def test_samples_are_several_and_others_each_time(kind: str, engines: dict[str, Any]) -> None:
    several = options({**DRAWN, "n_best": 4, "min_length": 9, "stop": ["a"]})
    with Scheduler(engines[kind]) as scheduler:
        found = [scheduler.submit(Request(PROMPTS[0], several)) for _ in range(2)]
        answers = [hypothesis for ticket in found for hypothesis in ticket.result(60)]
        stream = scheduler.submit(Request(PROMPTS[0], options(DRAWN)))
        assert stream.result(60)[0].text == "".join(delta.text for delta in stream.take())
    assert len({answer.text for answer in answers}) > 3
    assert all("a" not in answer.tokens and "a" not in answer.text for answer in answers)
    assert answers[:4] == sorted(answers[:4], key=lambda answer: -answer.score)


@pytest.mark.parametrize("kind", [{}, {**DRAWN, "n_best": 2}], ids=["stream", "several"])
def test_a_cancelled_row_leaves_its_batch(engines: dict[str, Any], kind: dict[str, Any]) -> None:
    """Cancelled while it waits and while it runs; and one whose time is over."""
    long = GenerationConfig(max_length=3000, min_length=3000, **kind)
    with Scheduler(engines["lm"]) as scheduler:
        runs = scheduler.submit(Request(PROMPTS[0], long))
        while runs.started is None or not scheduler.statistics.rows:
            assert not runs.is_done
        waits = scheduler.submit(Request(PROMPTS[0], long))
        waits.cancel()
        runs.cancel()
        expired = scheduler.submit(Request(PROMPTS[0], long), seconds=0.01)
        other = scheduler.submit(Request(PROMPTS[0], options({})))
        for ticket in (waits, runs, expired):
            found = ticket.result(60)
            assert ticket.was_stopped and len(found[0].tokens) < 3000
        check(other, engines["lm"].generate([PROMPTS[0]], options({}))[0])


def test_what_it_cannot_do_is_refused_at_once(engines: dict[str, Any]) -> None:
    with Scheduler(engines["lm"]) as scheduler:
        with pytest.raises(UnsupportedError, match="seed needs the torch engine"):
            scheduler.submit(Request(PROMPTS[0], options({**DRAWN, "seed": 1})))
        scheduler.submit(Request(PROMPTS[0], options({"seed": 1})))  # greedy search draws nothing
        for refused in ({"coverage_penalty": "wu"}, {"stop_tokens": ["zz"]}):
            with pytest.raises(ConfigError):
                scheduler.submit(Request(PROMPTS[0], options(refused)))
        with pytest.raises(ConfigError, match="tgt_file_prefix"):
            scheduler.submit(Request(PROMPTS[0], options({}), prefix=["a"]))
    with Scheduler(engines["seq2seq"]) as scheduler, pytest.raises(UnsupportedError, match="Log probabilities"):
        scheduler.submit(Request(PROMPTS[0], options({}), top_log_probs=2))


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_log_probs_add_up_to_the_score(engines: dict[str, Any], penalty: float) -> None:
    engine, prompt = engines["lm"], PROMPTS[2]
    ids = [VOCAB.index(token) for token in prompt[1:]]
    asked = options({"repetition_penalty": penalty, "length_penalty": "none"})
    with Scheduler(engine) as scheduler:
        tickets = [
            scheduler.submit(Request(prompt, asked, top_log_probs=2, prompt_log_probs=whole)) for whole in (True, False)
        ]
        answers = [ticket.result(60)[0] for ticket in tickets]
        whole, short = ([one for delta in ticket.take() for one in delta.log_probs] for ticket in tickets)
    assert whole[len(prompt) - 1 :] == short and answers[0] == answers[1]
    assert [one.token for one in whole[: len(prompt) - 1]] == prompt[1:]
    assert [one.token for one in short][: len(answers[0].tokens)] == answers[0].tokens
    assert sum(one.log_prob for one in short) == pytest.approx(answers[0].score, abs=1e-3)
    logits = engine.logits(prompt)[:-1, : len(VOCAB)]
    log_probs = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))[range(len(prompt) - 1), ids]
    assert [one.log_prob for one in whole[: len(prompt) - 1]] == pytest.approx(log_probs.tolist(), abs=1e-3)
    assert all(one.top[0][1] >= one.top[1][1] and np.isfinite(one.log_prob) for one in whole)


def test_the_callback_does_not_hold_the_model(folder: Path) -> None:
    """CTranslate2 drops it in a worker thread; a model that ends there waits for its own thread and aborts."""
    kept: list[Any] = []

    def answer() -> weakref.ref[Any]:
        engine: Any = open_engine(folder / "lm_ct2", device="cpu")
        original = engine.decode_batch

        def decode_batch(prompts: Any, options: Any, callback: Any) -> Any:
            kept.append(callback)
            return original(prompts, options, callback)

        engine.for_languages = lambda src, tgt: engine
        engine.decode_batch = decode_batch
        with Scheduler(engine) as scheduler:
            scheduler.submit(Request(PROMPTS[0], options({}))).result(60)
        return weakref.ref(engine._model)

    loaded = answer()
    gc.collect()
    assert kept and loaded() is None
