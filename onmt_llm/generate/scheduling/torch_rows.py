"""Greedy search and sampling of many requests in one batch of the torch engine, which rows join and leave at any step.

Shapes: R = rows of the batch, V = vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Delta, Hypothesis, TokenLogProbs
from onmt_llm.generate.scheduling.log_probs import describe
from onmt_llm.generate.scheduling.ticket import Ticket
from onmt_llm.generate.scheduling.torch_prompts import store_row
from onmt_llm.generate.search.sampling import DecodingRow, build_constraints, extend, picker
from onmt_llm.generate.search.state import Decoding, PromptIds
from onmt_llm.generate.torch.answers import Answer
from onmt_llm.generate.torch.engine import TorchEngine, random_numbers, seed_of
from onmt_llm.generate.torch.lookup import DraftedDecoding


class SampledRequest:
    """The answers to a request, of which each is a row of the batch.

    Args:
        ticket: Where they are delivered.
        engine: The engine between the request's languages.
        prompt: Its prompt.
        before: Log probabilities that are delivered first.

    Attributes:
        rules: Rows with equal rules may get their tokens from one call.
    """

    def __init__(
        self, ticket: Ticket, engine: TorchEngine, prompt: PromptIds, before: Sequence[TokenLogProbs] = ()
    ) -> None:
        request, codec = ticket.request, engine.codec
        options = request.options
        self.ticket, self._engine, self._prompt = ticket, engine, prompt
        self._log_probs = list(before)
        seed = seed_of(options)
        self.answers = [
            Answer(DecodingRow(0, random=random_numbers(seed, 0, request.number + n)), codec, options)
            for n in range(options.n_best)
        ]
        prefixes = [codec.vocab.ids(request.prefix)] if request.prefix else ()
        self.constraints = build_constraints(options, codec, engine.model.config, prompts=[prompt], prefixes=prefixes)
        self.rules: Hashable = (replace(self.constraints, max_lengths=(), prefixes=()), _draws(options))

    @property
    def alive(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.row.finish is None]

    def report(self, log_probs_V: Tensor, token: int) -> None:
        """Remember the log probabilities of a new token, if they are requested."""
        top = self.ticket.request.top_log_probs
        if top is not None:
            self._log_probs += describe(log_probs_V[None].cpu().numpy(), [token], top, self._engine.codec.vocab)

    def deliver(self, extended: Iterable[Answer]) -> bool:
        """Deliver the newest token of these answers; returns whether that was the last."""
        news = [answer.read() for answer in extended]
        if self.alive:
            if len(self.answers) == 1:
                self.ticket.push(Delta(news[0], 1, log_probs=self._taken()))
            return False
        hypotheses = self._hypotheses()
        if len(self.answers) == 1:
            last = Delta(news[0], 1, hypotheses[0].finish_reason, self._taken())
        else:
            last = hypotheses[0].as_delta()
        self.ticket.finish(last, hypotheses)
        return True

    def store(self, decoding: Decoding, row: int) -> None:
        """Remember its prompt and answer for the next turn of a chat."""
        # The last token was chosen, but not read.
        store_row(self._engine, [*self._prompt, *self.answers[0].row.tokens[:-1]], decoding, row=row)

    def with_lookup(self, decoding: Decoding, answer: Answer) -> DraftedDecoding | Decoding:
        """A decoding that has only the row of this answer, with guesses if the engine makes them."""
        tokens = answer.row.tokens
        left = self.constraints.limit(0) - len(tokens)
        return self._engine.with_lookup(decoding, [*self._prompt, *tokens], max_length=left)

    def has_room(self) -> bool:
        """Whether the model can continue; otherwise the ticket gets the error."""
        try:
            self._engine.ensemble.check_room(self._prompt, len(self.alive[0].row.tokens))
        except DataError as error:
            self.ticket.fail(error)
            return False
        return True

    def stop(self) -> None:
        """Deliver the answers as far as they are."""
        rest = [answer.finish() for answer in self.answers]
        hypotheses = self._hypotheses()
        text, tokens = (rest[0], 0) if len(rest) == 1 else (hypotheses[0].text, len(hypotheses[0].tokens))
        self.ticket.finish(Delta(text, tokens, "stopped", self._taken()), hypotheses)

    def _hypotheses(self) -> list[Hypothesis]:
        found = sorted((answer.hypothesis() for answer in self.answers), key=lambda hypothesis: -hypothesis.score)
        return self._engine.aligned([self._prompt], [found], self.ticket.request.options)[0]

    def _taken(self) -> tuple[TokenLogProbs, ...]:
        taken, self._log_probs = tuple(self._log_probs), []
        return taken


class SampledBatch:
    """The rows of all sampled requests. While there is only one, its tokens are guessed (`lookup.py`)."""

    def __init__(self) -> None:
        self._decoding: Decoding | None = None
        self._alone: DraftedDecoding | Decoding | None = None
        self._rows: list[tuple[SampledRequest, Answer]] = []
        self._new: Decoding | None = None
        self._new_rows: list[tuple[SampledRequest, Answer]] = []

    def __len__(self) -> int:
        return len(self._rows) + len(self._new_rows)

    @property
    def tickets(self) -> list[Ticket]:
        return list(dict.fromkeys(request.ticket for request, _ in (*self._rows, *self._new_rows)))

    def join(self, requests: Sequence[SampledRequest], decoding: Decoding) -> None:
        """Add requests whose prompts have been read into a decoding of a row for each."""
        if any(len(request.answers) > 1 for request in requests):
            decoding.select([row for row, request in enumerate(requests) for _ in request.answers])
        if self._new is None:
            self._new = decoding
        else:
            self._new.join(decoding)
        self._new_rows += [(request, answer) for request in requests for answer in request.answers]

    def step(self) -> list[Ticket]:
        """One more token for every row; returns the tickets that are done."""
        self._admit()
        done = self._leave()
        if self._decoding is None:
            return done
        if len(self._rows) == 1 and self._alone is None:
            request, answer = self._rows[0]
            self._alone = request.with_lookup(self._decoding, answer)
        self._extend((self._alone or self._decoding).logits_RV)
        extended: dict[SampledRequest, list[Answer]] = {}
        for request, answer in self._rows:
            extended.setdefault(request, []).append(answer)
        for place, (request, answer) in enumerate(self._rows):
            if answer.row.finish is not None and len(request.answers) == 1:
                request.store(self._decoding, place)
        over = [request for request, answers in extended.items() if request.deliver(answers) or not request.has_room()]
        self._keep(
            [
                place
                for place, (request, answer) in enumerate(self._rows)
                if answer.row.finish is None and request not in over
            ]
        )
        done += [request.ticket for request in over]
        if self._decoding is not None:
            (self._alone or self._decoding).step([answer.row.tokens[-1] for _, answer in self._rows])
        return done

    def _admit(self) -> None:
        """Let the new rows into the batch, all at once: each time, the whole batch is copied."""
        if self._new is None:
            return
        if self._decoding is None:
            self._decoding = self._new
        else:
            if isinstance(self._alone, DraftedDecoding):
                self._decoding = self._alone.plain()
            self._decoding.join(self._new)
        self._alone = None
        self._rows += self._new_rows
        self._new, self._new_rows = None, []

    def _leave(self) -> list[Ticket]:
        """End the answers that are cancelled or whose time is over."""
        stopped = {request for request, _ in self._rows if request.ticket.must_stop}
        for request in stopped:
            request.stop()
        self._keep([place for place, (request, _) in enumerate(self._rows) if request not in stopped])
        return [request.ticket for request in stopped]

    def _keep(self, places: list[int]) -> None:
        if len(places) == len(self._rows):
            return
        self._rows, self._alone = [self._rows[place] for place in places], None
        if not places:
            self._decoding = None
        elif self._decoding is not None:
            self._decoding.select(places)
            self._decoding.drop_padding()

    def _extend(self, logits_RV: Tensor) -> None:
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for place, (request, _) in enumerate(self._rows):
            groups[request.rules].append(place)
        for places in groups.values():
            members = [self._rows[place] for place in places]
            owners = [request for request, _ in members]
            rows = [answer.row for _, answer in members]
            for number, row in enumerate(rows):
                row.prompt = number
            constraints = replace(
                owners[0].constraints,
                max_lengths=[owner.constraints.max_lengths[0] for owner in owners],
                prefixes=[owner.constraints.prefix(0) for owner in owners],
            )
            logits = logits_RV if len(places) == len(logits_RV) else logits_RV[places]
            pick = picker(owners[0].ticket.request.options)
            log_probs_RV = extend(rows, logits, pick=pick, constraints=constraints)
            for number, (owner, row) in enumerate(zip(owners, rows, strict=True)):
                owner.report(log_probs_RV[number], row.tokens[-1])


def _draws(options: GenerationConfig) -> tuple[float, ...]:
    """How tokens are drawn; () = greedy search."""
    if not options.samples:
        return ()
    return options.random_sampling_temp, options.random_sampling_topk, options.random_sampling_topp
