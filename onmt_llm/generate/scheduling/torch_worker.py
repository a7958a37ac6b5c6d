"""Continuous batching with the torch engine: requests join and leave the running batch at every step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator

import torch

from onmt_llm.generate.engine import Delta, empty_answers, end_ids
from onmt_llm.generate.scheduling.log_probs import check_log_probs
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.generate.scheduling.torch_beams import BeamBatch
from onmt_llm.generate.scheduling.torch_prompts import PromptReading, first_group, read_group
from onmt_llm.generate.scheduling.torch_rows import SampledBatch, SampledRequest
from onmt_llm.generate.scheduling.worker import Queue, finish_streamed
from onmt_llm.generate.search.state import Decoding
from onmt_llm.generate.torch.engine import TorchEngine, uses_beams
from onmt_llm.generate.torch.prefill import PIECE
from onmt_llm.nn.device import available_memory

_SHARE_OF_MEMORY = 0.5
"""Of the free memory, what the caches may take by default."""


class TorchWorker:
    """Answers many requests at once.

    Between two steps of the running batch it reads at most a piece of new prompts, so that a long prompt does not hold
    up the others. Greedy search and sampling run in one batch, whatever the options; beam searches run in batches of
    equal options beside it.

    Args:
        engine: Only the thread of `run` may compute with it.
        batch_size: Requests that are answered at once.
        cache_bytes: Memory limit for the keys and values of their tokens; a request that needs more is answered alone.
            None = half of what is free now.
    """

    def __init__(self, engine: TorchEngine, *, batch_size: int = 16, cache_bytes: int | None = None) -> None:
        self._engine, self._batch_size = engine, batch_size
        self._cache_tokens = (
            _free_bytes(engine) if cache_bytes is None else cache_bytes
        ) / engine.ensemble.bytes_per_token
        self._running: _Running | None = None

    @property
    def rows(self) -> int:
        running = self._running  # read once: another thread asks, and `run` may end meanwhile
        return 0 if running is None else running.rows

    def check(self, request: Request) -> None:
        """See `Worker.check`."""
        engine = self._engine.for_languages(request.src_lang, request.tgt_lang)
        engine.check([request.prompt], request.options)
        end_ids(engine.codec, request.options)  # the stop tokens are in the vocabulary
        assert engine.codec.start_tokens is not None  # the languages are given
        check_log_probs(request, is_decoder_only=engine.model.config.is_decoder_only)

    @torch.inference_mode()
    def run(self, queue: Queue) -> None:
        """See `Worker.run`."""
        self._running = running = _Running(self._engine, self._batch_size, self._cache_tokens)
        try:
            while running.admit(queue) or running.is_busy:
                for ticket in running.step():
                    queue.done(ticket)
        finally:
            self._running = None


class _Running:
    """The requests that are being answered."""

    def __init__(self, engine: TorchEngine, batch_size: int, cache_tokens: float) -> None:
        self._engine, self._batch_size, self._cache_tokens = engine, batch_size, cache_tokens
        self._held: deque[Ticket] = deque()
        self._reading: deque[PromptReading] = deque()
        self._read: dict[Hashable, list[PromptReading]] = {}
        self._sampled = SampledBatch()
        self._beams: list[BeamBatch] = []

    @property
    def rows(self) -> int:
        """Rows of the batches."""
        return len(self._sampled) + sum(map(len, self._beams))

    @property
    def is_busy(self) -> bool:
        return bool(self._held or self._tickets)

    @property
    def _tickets(self) -> list[Ticket]:
        read = [prompt for prompts in self._read.values() for prompt in prompts]
        batches = [self._sampled.tickets, *(beams.tickets for beams in self._beams)]
        return [prompt.ticket for prompt in (*self._reading, *read)] + [ticket for some in batches for ticket in some]

    def admit(self, queue: Queue) -> bool:
        """Take requests for which there is room; returns whether any was taken."""
        found = False
        stopped = [ticket for ticket in self._held if ticket.must_stop]
        self._held = deque(ticket for ticket in self._held if ticket not in stopped)
        for ticket in [*stopped, *queue.take(0, 0.0)]:
            finish_streamed(ticket, Delta("", 0, "stopped"), "")
            queue.done(ticket)
        while len(self._tickets) < self._batch_size:
            if not self._held:
                self._held.extend(queue.take(1, 0.0))
            if not self._held or not (self._held[0].must_stop or self._has_room(self._held[0])):
                break
            found, ticket = True, self._held.popleft()
            if self._open(ticket):
                queue.done(ticket)
        return found

    def step(self) -> Iterator[Ticket]:
        """Read a piece of the new prompts, and give every row a token; the tickets that are done."""
        yield from self._read_piece()
        yield from self._sampled.step()
        for beams in self._beams:
            yield from beams.step()
        self._beams = [beams for beams in self._beams if beams.tickets]

    def _has_room(self, ticket: Ticket) -> bool:
        tickets = self._tickets
        rows = sum(map(_rows, tickets)) + _rows(ticket)
        longest = max(_length(each) for each in (*tickets, ticket))
        return not tickets or rows * longest <= self._cache_tokens

    def _open(self, ticket: Ticket) -> bool:
        """Begin with a request; returns whether it is done already."""
        request = ticket.request
        try:
            if ticket.must_stop:
                finish_streamed(ticket, Delta("", 0, "stopped"), "")
            elif not request.prompt:
                ticket.finish(Delta("", 0, "stop"), empty_answers(request.options))
            else:
                engine = self._engine.for_languages(request.src_lang, request.tgt_lang)
                self._reading.append(PromptReading(ticket, engine))
                return False
        except Exception as error:
            ticket.fail(error)
        return True

    def _read_piece(self) -> Iterator[Ticket]:
        for prompt in [prompt for prompt in self._reading if prompt.ticket.must_stop]:
            self._reading.remove(prompt)
            finish_streamed(prompt.ticket, Delta("", 0, "stopped"), "")
            yield prompt.ticket
        left = PIECE
        while self._reading and left > 0:
            group = first_group(self._reading, left)
            try:
                left -= self._read_group(group) if len(group) > 1 else self._read_first()
            except Exception as error:  # of these prompts alone: they are in no batch yet
                for prompt in group or [self._reading[0]]:
                    self._reading.remove(prompt)
                    prompt.ticket.fail(error)
                    yield prompt.ticket
        self._start_beams()

    def _read_group(self, group: list[PromptReading]) -> int:
        """Read whole prompts in one pass; returns its number of tokens."""
        decoding, requests = read_group(group), [_sampled(prompt) for prompt in group]
        self._sampled.join(requests, decoding)
        for prompt in group:
            self._reading.remove(prompt)
        return len(group) * max(len(prompt.ids) for prompt in group)

    def _read_first(self) -> int:
        """Read a piece of the first prompt; returns its number of tokens."""
        prompt = self._reading[0]
        tokens = prompt.step()
        if prompt.decoding is not None:
            self._start(prompt, prompt.decoding)
            self._reading.popleft()
        return tokens

    def _start(self, prompt: PromptReading, decoding: Decoding) -> None:
        """Answer a prompt that has been read; a beam search begins when no other prompt is read for it."""
        request = prompt.ticket.request
        if uses_beams(request.options):
            self._read.setdefault(_search(request), []).append(prompt)
        else:
            self._sampled.join([_sampled(prompt)], decoding)

    def _start_beams(self) -> None:
        still = {_search(prompt.ticket.request) for prompt in self._reading}
        for search in [search for search in self._read if search not in still]:
            self._beams.append(BeamBatch(self._read.pop(search)))


def _sampled(prompt: PromptReading) -> SampledRequest:
    return SampledRequest(prompt.ticket, prompt.engine, prompt.ids, prompt.log_probs)


def _search(request: Request) -> Hashable:
    """Requests with equal values can share a beam search."""
    options = request.options.model_copy(update={"seed": -1})
    return options.model_dump_json(), request.src_lang, request.tgt_lang


def _rows(ticket: Ticket) -> int:
    options = ticket.request.options
    return options.beam_size if uses_beams(options) else options.n_best


def _length(ticket: Ticket) -> int:
    """Maximum number of tokens of a row of its, prompt included."""
    request = ticket.request
    return len(request.prompt) + len(request.prefix) + request.options.max_length


def _free_bytes(engine: TorchEngine) -> float:
    device = engine.ensemble.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    return math.inf if free is None else _SHARE_OF_MEMORY * free
