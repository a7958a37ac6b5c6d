"""Continuous batching gives each request the answer that the engine gives to its prompt alone."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.generate.scheduling import torch_prompts
from onmt_llm.generate.scheduling.scheduler import Scheduler
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.generate.scheduling.torch_worker import TorchWorker
from onmt_llm.generate.scheduling.worker import Queue
from onmt_llm.generate.search.state import Decoding
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.generate.torch.lookup import DraftedDecoding

VOCAB = ["<unk>", "<s>", "</s>", "<end>", *(chr(ord("a") + i) for i in range(20))]
PROMPTS = [["<s>", "a", "b"], ["<s>"], ["<s>", *"qponmlkjihg"], [], ["<s>", *"cde"], ["<s>", *"cde"]]
SAMPLED = {"random_sampling_topk": 12, "random_sampling_topp": 0.95, "random_sampling_temp": 2.0}
OPTIONS = {
    "greedy": {},
    "short": {"max_length": 1},
    "sampled": {**SAMPLED, "seed": 3},
    "others": {**SAMPLED, "random_sampling_temp": 3.0, "seed": 4, "ban_unk_token": True},
    "several": {**SAMPLED, "seed": 5, "n_best": 3},
    "penalties": {"repetition_penalty": 1.5, "block_ngram_repeat": 2, "min_length": 6},
    "presence": {"presence_penalty": 1.2, "min_length": 6},
    "frequency": {**SAMPLED, "seed": 6, "presence_penalty": -0.5, "frequency_penalty": 0.8, "min_length": 6},
    "penalised beam": {"beam_size": 2, "frequency_penalty": 0.9, "min_length": 6},
    "stop": {"stop": ["a", "c e"], "min_length": 3},
    "stop token": {"stop_tokens": ["f", "k"]},
    "beam": {"beam_size": 3, "n_best": 2},
    "wide": {"beam_size": 4, "length_penalty": "wu", "alpha": 0.6, "ratio": 0.5},
}
SOURCE_OPTIONS = {
    **OPTIONS,
    "limited": {"max_length_ratio": 1.0},
    "aligned": {"report_align": True, "alignment_layer": -1, "alignment_heads": 1},
    "coverage": {"beam_size": 2, "coverage_penalty": "wu", "beta": 0.3, "stepwise_penalty": True},
    "one beam": {"coverage_penalty": "summary", "beta": 0.3},
    "replaced": {"replace_unk": True, "beam_size": 2},
}


ROPE = {"original_max_position": 30, "factor": 4.0, "scaling": "longrope"}
LOOPING: dict[str, dict[str, Any]] = {
    "rotary": tiny.LLAMA,
    "alibi": {"position": "alibi"},
    "window": {**tiny.LLAMA, "sliding_window": 5},
    "longrope": {
        **tiny.LLAMA,
        "rope": {**ROPE, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]},
    },
}


def options(kind: dict[str, Any]) -> GenerationConfig:
    return GenerationConfig(**{"max_length": 9, "max_length_ratio": 0, **kind})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("continuous")


@pytest.fixture(scope="module")
def lm(folder: Path) -> TorchEngine:
    """With a prefix cache, which `alone` does not use."""
    model = tiny.llama(vocab_size=26)
    tiny.write_checkpoint(folder / "lm", model, VOCAB, seed=5, scale=0.4, stop_tokens=["<end>"])
    return TorchEngine.open(folder / "lm", device="cpu", prefix_cache=1)


@pytest.fixture(scope="module")
def seq2seq(folder: Path) -> TorchEngine:
    model = tiny.seq2seq(vocab_size=26)
    return TorchEngine.open(
        tiny.write_checkpoint(folder / "seq2seq", model, VOCAB, seed=5, scale=0.4, norm_bias=1.0), device="cpu"
    )


def alone(engine: TorchEngine, request: Request) -> list[Hypothesis]:
    prefixes = [request.prefix] if request.prefix else None
    return engine.generate([request.prompt], request.options, prefixes=prefixes)[0]


def check(ticket: Ticket, expected: list[Hypothesis]) -> None:
    """The whole answer, and its pieces."""
    found = ticket.result(60)
    assert [(h.tokens, h.text, h.finish_reason, h.alignment) for h in found] == [
        (h.tokens, h.text, h.finish_reason, h.alignment) for h in expected
    ]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)
    deltas = ticket.take()
    assert "".join(delta.text for delta in deltas) == found[0].text
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [found[0].finish_reason]


@pytest.mark.parametrize(("kind", "batch_size"), [("lm", 4), ("seq2seq", 100)])
def test_requests_with_any_options_do_not_change_each_other(
    kind: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(kind)
    kinds = OPTIONS if kind == "lm" else SOURCE_OPTIONS
    requests = [
        Request(PROMPTS[(number + i) % len(PROMPTS)], options(one))
        for number, one in enumerate(kinds.values())
        for i in (0, 2, 3)
    ]
    requests += [Request(PROMPTS[2], options(kinds[name]), prefix=["b", "d"]) for name in ("sampled", "beam", "stop")]
    random.Random(1).shuffle(requests)
    expected = [alone(engine, one) for one in requests]
    before = set(threading.enumerate())
    with Scheduler(engine, max_queue=200, worker=TorchWorker(engine, batch_size=batch_size)) as scheduler:
        tickets = [scheduler.submit(one) for one in requests]
        for ticket, answer in zip(tickets, expected, strict=True):
            check(ticket, answer)
    assert scheduler.statistics.answered == len(requests)
    assert set(threading.enumerate()) <= before


def test_a_sampled_answer_with_a_number_is_that_sample_of_several(lm: TorchEngine) -> None:
    several = options({**SAMPLED, "seed": 5, "n_best": 3})
    expected = lm.generate([PROMPTS[0]], several)[0]
    with Scheduler(lm) as scheduler:
        one = several.model_copy(update={"n_best": 1})
        tickets = [scheduler.submit(Request(PROMPTS[0], one, number=number)) for number in range(3)]
        found = [ticket.result(60)[0].text for ticket in tickets]
    assert sorted(found) == sorted(answer.text for answer in expected) and len(set(found)) == 3


class Steps:
    """A queue that is filled before given steps of the worker, and tickets that are cancelled before others."""

    def __init__(self, arrivals: dict[int, list[Ticket]]) -> None:
        self.arrivals, self.waiting, self.done = arrivals, [], []
        self.calls = 0

    def take(self, limit: int, seconds: float, alike: Any = None) -> list[Ticket]:
        self.calls += 1
        for step in [step for step in self.arrivals if step <= self.calls]:
            self.waiting += self.arrivals.pop(step)
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        for ticket in taken:
            ticket.begin()
        return taken

    def run(self, worker: TorchWorker) -> None:
        while self.arrivals or self.waiting:
            worker.run(Queue(self.take, self.done.append))


@pytest.mark.parametrize(("kind", "seed"), [("lm", 1), ("lm", 2), ("seq2seq", 3)])
def test_a_random_walk_of_requests_that_come_and_go(
    kind: str, seed: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, chance = request.getfixturevalue(kind), random.Random(seed)
    monkeypatch.setattr(torch_prompts, "PIECE", 4)
    kinds = list((OPTIONS if kind == "lm" else SOURCE_OPTIONS).values())
    arrivals: dict[int, list[Ticket]] = {}
    cancelled, expected = set(), {}
    for number in range(20):
        prompt = ["<s>", *chance.choices(VOCAB[4:], k=chance.randrange(14))]
        ticket = Ticket(Request(prompt, options(chance.choice(kinds))))
        expected[ticket] = alone(engine, ticket.request)
        arrivals.setdefault(chance.randrange(40), []).append(ticket)
        if number % 4 == 0:
            after = chance.randrange(5)
            ticket._notify = lambda ticket=ticket, after=after: ticket.cancel() if len(ticket._new) > after else None
            cancelled.add(ticket)
    steps = Steps(arrivals)
    steps.run(TorchWorker(engine, batch_size=6))
    assert len(steps.done) == len(set(steps.done)) == 20
    for ticket, answers in expected.items():
        if ticket in cancelled and ticket.was_stopped:
            assert answers[0].text.startswith(ticket.result(0)[0].text)
        else:
            check(ticket, answers)


def looping(folder: Path, kind: str) -> tuple[TorchEngine, TorchEngine]:
    """An engine whose answers often repeat themselves, and the same with guesses."""
    model = tiny.config(**LOOPING[kind])
    engine = TorchEngine.open(tiny.write_checkpoint(folder, model, VOCAB, seed=7, scale=0.2), device="cpu")
    return engine, TorchEngine(engine.model, engine.codec, prompt_lookup=True, prefix_cache=1 << 20)


@pytest.mark.usefixtures("many_guesses")
@pytest.mark.parametrize("kind", LOOPING)
def test_a_row_is_guessed_while_it_is_alone(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others join in the middle of a guess and leave, or it is cancelled: the answers are those without guesses."""
    engine, guessing = looping(tmp_path, kind)
    chance = random.Random(4)
    guesses: list[int] = []
    unused: list[int] = []
    extend, plain = Decoding.extend, DraftedDecoding.plain

    def counted_extend(self: Decoding, ids: Any) -> Any:
        guesses.append(len(ids) - 1)
        return extend(self, ids)

    def counted_plain(self: DraftedDecoding) -> Decoding:
        unused.append(len(self._draft) - self._accepted)
        return plain(self)

    monkeypatch.setattr(Decoding, "extend", counted_extend)
    monkeypatch.setattr(DraftedDecoding, "plain", counted_plain)
    kinds: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.1}, {"random_sampling_topk": 2, "seed": 1}]
    kinds += [{**SAMPLED, "n_best": 2, "seed": 2}]
    tickets: list[Ticket] = []
    arrivals: dict[int, list[Ticket]] = {}
    for number in range(24):
        prompt = ["<s>", *chance.choices(VOCAB[4:9], k=chance.randrange(1, 16))]
        length = 45 if number % 3 else 8
        one = options({"max_length": length, "min_length": length, **chance.choice(kinds)})
        ticket = Ticket(Request(prompt, one))
        if number % 5 == 4:
            ticket._notify = lambda ticket=ticket: ticket.cancel() if len(ticket._new) > 9 else None
        tickets.append(ticket)
        arrivals[30 * number + chance.randrange(20)] = [ticket]
    Steps(arrivals).run(TorchWorker(guessing))
    assert sum(size > 0 for size in guesses) > 5
    assert any(size > 0 for size in unused)
    assert any(ticket.was_stopped for ticket in tickets)
    for ticket in tickets:
        expected = alone(engine, ticket.request)
        if ticket.was_stopped:
            assert expected[0].text.startswith(ticket.result(0)[0].text)
        else:
            check(ticket, expected)


def test_guesses_save_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, guessing = looping(tmp_path, "alibi")
    request = Request(PROMPTS[0], options({"max_length": 200, "min_length": 200}))
    expected, passes, extend = alone(engine, request), 0, Decoding.extend

    def counted(self: Decoding, ids: Any) -> Any:
        nonlocal passes
        passes += 1
        return extend(self, ids)

    monkeypatch.setattr(Decoding, "extend", counted)
    with Scheduler(guessing) as scheduler:
        check(scheduler.submit(request), expected)
    assert 0 < passes < 100


def test_eight_seeded_streams_at_once_are_those_of_eight_in_a_row(lm: TorchEngine) -> None:
    seeded = [options({**SAMPLED, "seed": seed, "max_length": 30}) for seed in range(8)]
    expected = ["".join(delta.text for delta in lm.stream(PROMPTS[0], one)) for one in seeded]
    found = [""] * 8

    def read(number: int, scheduler: Scheduler) -> None:
        found[number] = "".join(delta.text for delta in scheduler.stream(PROMPTS[0], seeded[number]))

    with Scheduler(lm) as scheduler:
        threads = [threading.Thread(target=read, args=(number, scheduler)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == expected


@pytest.mark.parametrize("kind", [{}, {"n_best": 2, **SAMPLED}, {"beam_size": 3}], ids=["stream", "several", "beam"])
def test_a_cancelled_request_leaves_the_batch_at_the_next_step(lm: TorchEngine, kind: dict[str, Any]) -> None:
    """Cancelled while it waits, while its prompt is read, and while it is answered."""
    long = GenerationConfig(max_length=500, min_length=500, **kind)
    waits, reads, runs = (Ticket(Request(PROMPTS[2], long)) for _ in range(3))
    expired = Ticket(Request(PROMPTS[2], long), deadline=0.0)
    other = Ticket(Request(PROMPTS[0], options({})))
    waits.cancel()
    steps = Steps({0: [waits, expired, runs, other]})
    taken = steps.take

    def take(limit: int, seconds: float, alike: Any = None) -> list[Ticket]:
        if steps.calls == 12:
            runs.cancel()
            steps.waiting.append(reads)
        elif reads.started is not None:
            reads.cancel()
        return taken(limit, seconds)

    steps.take = take  # type: ignore[method-assign]
    steps.run(TorchWorker(lm))
    assert all(ticket.was_stopped for ticket in (waits, expired, reads, runs))
    assert steps.calls < 40
    check(other, lm.generate([PROMPTS[0]], options({}))[0])


def test_a_request_that_cannot_be_answered_is_refused_at_once(lm: TorchEngine, folder: Path) -> None:
    learned = tiny.config(vocab_size=26, position="learned", max_position=10)
    engine = TorchEngine.open(tiny.write_checkpoint(folder / "learned", learned, VOCAB, scale=0.4), device="cpu")
    with Scheduler(engine) as scheduler:
        with pytest.raises(DataError, match="at most max_position = 10 tokens"):
            scheduler.submit(Request(["<s>"] * 11, options({})))
        for refused in ({"stop_tokens": ["zz"]}, {"report_align": True}):
            with pytest.raises(ConfigError):
                scheduler.submit(Request(["<s>"], options(refused)))


@pytest.mark.parametrize("kind", [{}, {"beam_size": 2}], ids=["greedy", "beam"])
def test_an_answer_that_outgrows_the_positions_fails_alone(tmp_path: Path, kind: dict[str, Any]) -> None:
    learned = tiny.config(vocab_size=26, position="learned", max_position=10)
    engine = TorchEngine.open(tiny.write_checkpoint(tmp_path / "table", learned, VOCAB, scale=0.4), device="cpu")
    whole = GenerationConfig(max_length=20, min_length=20, **kind)
    with Scheduler(engine) as scheduler:
        long, short = (scheduler.submit(Request(["<s>"], one)) for one in (whole, options({"max_length": 8})))
        longer = scheduler.submit(Request(["<s>", "a", "b"], whole))
        for ticket in (long, longer):
            with pytest.raises(DataError, match="at most max_position = 10 tokens"):
                ticket.result(60)
        check(short, engine.generate([["<s>"]], options({"max_length": 8}))[0])


def test_a_prompt_that_several_requests_share_is_read_once(lm: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ["<s>", *random.Random(7).choices(VOCAB[4:], k=60)]
    expected = alone(lm, Request(prompt, options({})))
    read, original = [], lm.model.decode

    def decode(ids: Any, *rest: Any, **cached: Any) -> Any:
        read.append(ids.shape[1])
        return original(ids, *rest, **cached)

    monkeypatch.setattr(lm.model, "decode", decode)
    with Scheduler(lm) as scheduler:
        for ticket in [scheduler.submit(Request(prompt, options({}))) for _ in range(3)]:
            check(ticket, expected)
        answer = [*prompt, *expected[0].tokens]
        scheduler.submit(Request([*answer, "b"], options({"max_length": 1}))).result(60)
    assert sum(count for count in read if count > 2) == len(prompt)


@pytest.mark.parametrize("kind", ["lm", "seq2seq"])
def test_short_prompts_are_read_together(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = request.getfixturevalue(kind)
    prompts = [["<s>", *random.Random(seed).choices(VOCAB[4:], k=3 + seed)] for seed in range(4)]
    several = {"n_best": 2, "random_sampling_topk": 0, "seed": 3}
    some = [Request(prompt, options(several if n % 2 else {})) for n, prompt in enumerate(prompts)]
    expected = [alone(engine, one) for one in some]
    reads, original = [], engine.ensemble.start

    def start(texts: Any, **given: Any) -> Any:
        reads.append(len(texts))
        return original(texts, **given)

    monkeypatch.setattr(engine.ensemble, "start", start)
    monkeypatch.setattr(engine, "for_languages", lambda *_: engine)
    scheduler = Scheduler(engine)
    tickets = [scheduler.submit(one) for one in some]
    with scheduler:
        for ticket, answer in zip(tickets, expected, strict=True):
            check(ticket, answer)
    assert sum(reads) == 4
    assert len(reads) <= 2  # the first may have been read before the others came


def test_a_cache_that_is_full_makes_requests_wait(lm: TorchEngine) -> None:
    small = TorchWorker(lm, cache_bytes=30 * lm.ensemble.bytes_per_token)
    requests = [Request(PROMPTS[2], options({"min_length": 9})) for _ in range(4)]
    most = 0

    def watch() -> None:
        nonlocal most
        most = max(most, small.rows)

    with Scheduler(lm, worker=small) as scheduler:
        tickets = [scheduler.submit(one, notify=watch) for one in requests]
        for ticket in tickets:
            check(ticket, alone(lm, requests[0]))
    assert most == 1


def test_log_probs_are_those_of_the_scores(lm: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_prompts, "PIECE", 4)
    prompt = PROMPTS[2]
    with Scheduler(lm) as scheduler:
        asked = Request(prompt, options({"max_length": 5}), top_log_probs=3, prompt_log_probs=True)
        tickets = [scheduler.submit(asked), scheduler.submit(Request(prompt, options({})))]
        answer = tickets[0].result(60)[0]
        found = [one for delta in tickets[0].take() for one in delta.log_probs]
        assert not any(delta.log_probs for delta in tickets[1].take() if tickets[1].result(60))
    whole = [*prompt, *(one.token for one in found[len(prompt) - 1 :])]
    assert whole[len(prompt) :][: len(answer.tokens)] == answer.tokens
    assert [one.token for one in found[: len(whole) - 1]] == whole[1:]
    logits = lm.logits(whole)[:-1, : len(VOCAB)].astype("float64")
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    for one, row in zip(found, log_probs, strict=False):
        assert one.log_prob == pytest.approx(row[VOCAB.index(one.token)], abs=1e-4)
        best = sorted(range(len(VOCAB)), key=lambda i: -row[i])[:3]
        assert [token for token, _ in one.top] == [VOCAB[i] for i in best]
    with pytest.raises(ConfigError, match="beam_size 1 and n_best 1"):
        Scheduler(lm).submit(Request(prompt, options({"beam_size": 2}), top_log_probs=0))
