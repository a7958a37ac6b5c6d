"""Batches of like requests with CTranslate2, whose batches nothing can join while they run."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING

from onmt_llm.errors import UnsupportedError
from onmt_llm.generate.engine import Delta, Hypothesis, TokenLogProbs, empty_answers, end_ids
from onmt_llm.generate.lengths import max_answer_length
from onmt_llm.generate.scheduling.ct2_rows import Ct2Row, Ct2Rows
from onmt_llm.generate.scheduling.log_probs import check_log_probs, describe, log_softmax
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.generate.scheduling.worker import Queue, finish_streamed

if TYPE_CHECKING:
    from onmt_llm.generate.ct2.engine import Ct2Engine

_GATHER_SECONDS = 0.005
"""How long the first request of a batch waits for others."""
_IDLE_SECONDS = 0.02
"""How long it waits, while batches run, before it looks for new and for cancelled requests."""
_OF_A_ROW = {"seed", "stop", "max_length", "max_length_ratio"}
"""Options that each row of a batch may have of its own."""


class Ct2Worker:
    """Answers requests in batches of equal options.

    A request that comes while a batch runs waits for the next one. A cancelled answer leaves its batch at its next
    token; a beam search runs to its end.

    Args:
        engine: Only the threads of `run` may compute with it.
        batch_size: Maximum number of requests of a batch.
    """

    def __init__(self, engine: Ct2Engine, *, batch_size: int = 16) -> None:
        self._engine, self._batch_size = engine, batch_size
        self._decoded: set[Ticket] = set()

    @property
    def rows(self) -> int:
        """See `Worker.rows`; those of answers that have ended count until their batch ends."""
        options = [ticket.request.options for ticket in list(self._decoded)]
        return sum(max(each.beam_size, each.n_best) for each in options)

    def check(self, request: Request) -> None:
        """See `Worker.check`.

        Raises:
            UnsupportedError: A seed, of which CTranslate2 takes one for all answers of a model.
        """
        engine = self._engine.for_languages(request.src_lang, request.tgt_lang)
        engine.check([request.prompt], request.options, prefixes=bool(request.prefix))
        end_ids(engine.codec, request.options)  # the stop tokens are in the vocabulary
        if request.options.samples and request.options.seed >= 0:
            raise UnsupportedError(
                "A request with a seed needs the torch engine: CTranslate2 takes one seed for all answers of a model.",
                hint="leave out the seed, or serve the checkpoint instead of the release",
            )
        is_decoder_only = engine.codec.config.model.is_decoder_only
        check_log_probs(request, is_decoder_only=is_decoder_only)
        if request.top_log_probs is not None and not is_decoder_only:
            raise UnsupportedError(
                "Log probabilities of an encoder-decoder's answers need the torch engine: CTranslate2 gives none.",
                hint="leave them out, or serve the checkpoint instead of the release",
            )

    def run(self, queue: Queue) -> None:
        """See `Worker.run`."""
        workers = self._engine.workers
        busy: set[Future[None]] = set()
        with ThreadPoolExecutor(workers, thread_name_prefix="scheduler") as pool:
            while True:
                busy = {future for future in busy if not future.done()}
                free = len(busy) < workers
                limit, seconds = (self._batch_size, _GATHER_SECONDS) if free else (0, 0.0)
                tickets = queue.take(limit, seconds, self._alike)
                if tickets and not free:
                    self._answer(tickets, queue)  # all of these must stop: nothing is computed
                elif tickets:
                    busy.add(pool.submit(self._answer, tickets, queue))
                elif not busy:
                    return
                else:
                    wait(busy, _IDLE_SECONDS, return_when=FIRST_COMPLETED)

    def _alike(self, ticket: Ticket) -> Hashable:
        """Requests with equal values may share a batch."""
        request = ticket.request
        options = request.options
        key = self._engine.batch_key(request.prompt, options)
        beams = options.beam_size > 1
        aligns = options.report_align or options.replace_unk
        own = {"seed"} if beams else _OF_A_ROW - {"stop"} if aligns else _OF_A_ROW
        dumped = options.model_dump_json(exclude=own)
        return dumped, request.src_lang, request.tgt_lang, bool(request.prompt), key

    def _answer(self, tickets: list[Ticket], queue: Queue) -> None:
        try:
            alive = [ticket for ticket in tickets if not ticket.must_stop]
            for ticket in tickets:
                if ticket not in alive:
                    finish_streamed(ticket, Delta("", 0, "stopped"), "")
            if alive:
                self._decoded.update(alive)
                self._answer_alike(alive)
        except Exception as error:
            for ticket in tickets:
                if not ticket.is_done:
                    ticket.fail(error)
        self._decoded.difference_update(tickets)
        for ticket in tickets:
            queue.done(ticket)

    def _answer_alike(self, tickets: list[Ticket]) -> None:
        request = tickets[0].request
        engine = self._engine.for_languages(request.src_lang, request.tgt_lang)
        if not request.prompt:
            for ticket in tickets:
                ticket.finish(Delta("", 0, "stop"), empty_answers(request.options))
        elif request.options.beam_size > 1:
            _search(engine, tickets)
        else:
            _decode(engine, tickets)


def _search(engine: Ct2Engine, tickets: list[Ticket]) -> None:
    """Beam search, whose answers are known only at its end."""
    prompts = [ticket.request.prompt for ticket in tickets]
    found = engine.generate(prompts, tickets[0].request.options, batch_size=len(prompts))
    for ticket, hypotheses in zip(tickets, found, strict=True):
        ticket.finish(hypotheses[0].as_delta(), hypotheses)


def _decode(engine: Ct2Engine, tickets: list[Ticket]) -> None:
    """Greedy search or sampling."""
    options = tickets[0].request.options
    aligns = options.report_align or options.replace_unk
    limits = [_limit(engine, ticket.request) for ticket in tickets]
    requests = [
        (ticket, [Ct2Row(ticket, engine.codec, limit=limit, forced=engine.forced) for _ in range(options.n_best)])
        for ticket, limit in zip(tickets, limits, strict=True)
    ]
    rows = Ct2Rows(requests, [ticket for ticket in tickets if aligns or _wants_log_probs(ticket.request)])
    lengths = {"max_length": max(limits), "min_length": min(options.min_length, max(limits)), "max_length_ratio": 0.0}
    try:
        prompts = [ticket.request.prompt for ticket in tickets]
        results = engine.decode_batch(prompts, options.model_copy(update=lengths), rows)
    finally:
        rows.release()
    for (ticket, answers), found in zip(requests, results, strict=True):
        if not ticket.is_done:
            _finish(engine, ticket, answers, found if aligns else None)


def _finish(engine: Ct2Engine, ticket: Ticket, answers: list[Ct2Row], found: list[Hypothesis] | None) -> None:
    """Deliver the end of what the callback does not: several answers, alignments (in `found`), log probabilities."""
    hypotheses = found or sorted((row.hypothesis() for row in answers), key=lambda hypothesis: -hypothesis.score)
    last = hypotheses[0].as_delta()
    if len(answers) == 1:
        log_probs = _log_probs(engine, ticket.request, answers[0].ids) if _wants_log_probs(ticket.request) else ()
        last = Delta("", 0, last.finish_reason, tuple(log_probs))
    if any(row.was_stopped for row in answers):
        last = replace(last, finish_reason="stopped")
    ticket.finish(last, hypotheses)


def _log_probs(engine: Ct2Engine, request: Request, answer: list[int]) -> Iterator[TokenLogProbs]:
    """Those of the prompt's and of the answer's tokens, as requested, by a pass over all of them."""
    vocab, top = engine.codec.vocab, request.top_log_probs
    ids = [*vocab.ids(request.prompt), *answer]
    logits_TV = engine.logits(vocab.tokens(ids))[:-1, : len(vocab)]
    log_probs_TV = log_softmax(logits_TV, answer, request.options.repetition_penalty)
    start = 0 if request.prompt_log_probs else len(ids) - len(answer) - 1
    end = len(ids) - 1 if top is not None else len(ids) - len(answer) - 1
    return describe(log_probs_TV[start:end], ids[start + 1 : end + 1], top or 0, vocab)


def _wants_log_probs(request: Request) -> bool:
    return request.top_log_probs is not None or request.prompt_log_probs


def _limit(engine: Ct2Engine, request: Request) -> int:
    """Maximum number of tokens of its answer."""
    if engine.codec.config.model.is_decoder_only:
        return request.options.max_length
    return max_answer_length(request.options, len(request.prompt))
