"""Beam search of several requests with equal options, step by step."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Delta, Hypothesis
from onmt_llm.generate.scheduling.ticket import Ticket
from onmt_llm.generate.scheduling.torch_prompts import PromptReading
from onmt_llm.generate.search.beam import BeamSearch
from onmt_llm.generate.search.sampling import build_constraints
from onmt_llm.generate.torch.answers import finished_answers, stop_detector


class BeamBatch:
    """A beam search.

    Args:
        prompts: At least one, all read; their requests have equal options and languages.
    """

    def __init__(self, prompts: Sequence[PromptReading]) -> None:
        self._prompts, self._engine = prompts, prompts[0].engine
        engine = self._engine
        self._options = options = prompts[0].ticket.request.options
        first, *others = [prompt.decoding for prompt in prompts if prompt.decoding is not None]
        for decoding in others:
            first.join(decoding)
        constraints = build_constraints(
            options,
            engine.codec,
            engine.model.config,
            prompts=[prompt.ids for prompt in prompts],
            prefixes=[engine.codec.vocab.ids(prompt.ticket.request.prefix) for prompt in prompts],
        )
        at_stop = stop_detector(engine.codec, options)
        self._search = BeamSearch(first, options=options, constraints=constraints, at_stop=at_stop)
        self._alive = list(range(len(prompts)))

    @property
    def tickets(self) -> list[Ticket]:
        """Those that are not done."""
        return [self._prompts[prompt].ticket for prompt in self._alive]

    def __len__(self) -> int:
        """Hypotheses that are alive, at most."""
        return len(self._alive) * self._options.beam_size

    def step(self) -> list[Ticket]:
        """One more token for every hypothesis; returns the tickets that are done."""
        done = [prompt for prompt in self._alive if self._prompts[prompt].ticket.must_stop]
        for prompt in done:
            self._search.drop(prompt)
            found = self._hypotheses(prompt)[:1] or [Hypothesis([], "", 0.0, "length")]
            self._prompts[prompt].ticket.finish(Delta(found[0].text, len(found[0].tokens), "stopped"), found)
        alive = [prompt for prompt in self._alive if prompt not in done]
        outgrown = {prompt: error for prompt in alive if (error := self._outgrown(prompt)) is not None}
        for prompt in outgrown:
            self._search.drop(prompt)
        over = self._search.step() if alive else []
        for prompt in [prompt for prompt in over if prompt in alive]:
            found = self._hypotheses(prompt)
            self._prompts[prompt].ticket.finish(found[0].as_delta(), found)
            done.append(prompt)
        for prompt in [prompt for prompt in outgrown if prompt not in over]:
            self._prompts[prompt].ticket.fail(outgrown[prompt])
            done.append(prompt)
        self._alive = [prompt for prompt in self._alive if prompt not in done]
        return [self._prompts[prompt].ticket for prompt in done]

    def _outgrown(self, prompt: int) -> DataError | None:
        """Why the model cannot continue after the next token."""
        try:
            self._engine.ensemble.check_room(self._prompts[prompt].ids, self._search.tokens_RN.shape[1] + 1)
        except DataError as error:
            return error
        return None

    def _hypotheses(self, prompt: int) -> list[Hypothesis]:
        found = finished_answers(self._search.best(prompt), self._engine.codec, self._options)
        return self._engine.aligned([self._prompts[prompt].ids], [found], self._options)[0]
