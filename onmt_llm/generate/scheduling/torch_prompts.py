"""Reading of prompts by the torch engine, piece by piece, with the log probabilities of their tokens if requested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onmt_llm.generate.engine import TokenLogProbs
from onmt_llm.generate.scheduling.log_probs import describe
from onmt_llm.generate.scheduling.ticket import Ticket
from onmt_llm.generate.search.beam import coverage_penalty
from onmt_llm.generate.search.sampling import ban
from onmt_llm.generate.search.state import Decoding, PromptIds
from onmt_llm.generate.torch.engine import TorchEngine, uses_beams
from onmt_llm.generate.torch.prefill import PIECE, PromptReader, is_separable
from onmt_llm.generate.torch.prefix import LEAST, common_length


class PromptReading:
    """A prompt that is being read.

    Args:
        ticket: Of its request.
        engine: The engine between the request's languages.

    Attributes:
        ids: Its tokens.
        log_probs: Those of its tokens from the second on, if they are requested.
    """

    def __init__(self, ticket: Ticket, engine: TorchEngine) -> None:
        request = ticket.request
        self.ticket, self.engine = ticket, engine
        self.ids: PromptIds = engine.ensemble.prompt_ids(request.prompt)
        self.log_probs: list[TokenLogProbs] = []
        self._decoding: Decoding | None = None
        self._reader: PromptReader | None = None
        self._scorer: _Scorer | None = None
        if request.prompt_log_probs and len(self.ids) > 1:
            self._scorer = _Scorer(engine, self.ids, request.top_log_probs or 0)

    @property
    def decoding(self) -> Decoding | None:
        """The state after the prompt, of one row; None = it is not yet read."""
        return self._decoding

    def step(self) -> int:
        """Read the next piece; returns its number of tokens."""
        if self._scorer is not None:
            self.log_probs += self._scorer.step()
            if self._scorer.is_done:
                self._decoding = self._scorer.decoding()
                self._scorer = None
            return PIECE
        if self._needs_attention:
            self._decoding = self.engine.ensemble.start([self.ids], attention=True)
            return len(self.ids)
        reader = self._opened()
        before = reader.length
        reader.step()
        if reader.is_done:
            self._decoding = reader.decoding
            store_row(self.engine, self.ids, self._decoding)
        return reader.length - before

    def joins(self, group: Sequence[PromptReading]) -> bool:
        """Whether one pass may read this whole prompt and those of a group; not if it begins like one of them, whose
        keys and values it can then use."""
        request = self.ticket.request
        for other in group:
            theirs = other.ticket.request
            if (request.src_lang, request.tgt_lang) != (theirs.src_lang, theirs.tgt_lang):
                return False
            if self.engine.prefixes is not None and common_length(self.ids, other.ids) >= LEAST:
                return False
        simple = self._scorer is None and not self._needs_attention and not uses_beams(request.options)
        return simple and len(self.ids) <= PIECE and self._opened().length == 0

    @property
    def _needs_attention(self) -> bool:
        return coverage_penalty(self.ticket.request.options) is not None

    def _opened(self) -> PromptReader:
        if self._reader is None:
            self._reader = PromptReader(self.engine.ensemble, self.ids, prefixes=self.engine.prefixes)
        return self._reader


def first_group(waiting: Iterable[PromptReading], room: int) -> list[PromptReading]:
    """The first prompts, as many as one pass may read whole.

    Args:
        waiting: Prompts in their order.
        room: Maximum number of tokens of the pass, padding included.

    Returns:
        Fewer than two where the first one must be read alone.
    """
    group: list[PromptReading] = []
    longest = 0
    for prompt in waiting:
        longest = max(longest, len(prompt.ids))
        if longest * (len(group) + 1) > room or not prompt.joins(group):
            break
        group.append(prompt)
    return group


def read_group(group: Sequence[PromptReading]) -> Decoding:
    """Read whole prompts in one pass; the state after them, of a row for each."""
    engine = group[0].engine
    decoding = engine.ensemble.start([prompt.ids for prompt in group])
    for row, prompt in enumerate(group):
        store_row(engine, prompt.ids, decoding, row=row)
    return decoding


class _Scorer:
    """Reads a prompt up to its last token, and reports the log probabilities of its tokens."""

    def __init__(self, engine: TorchEngine, ids: PromptIds, top: int) -> None:
        self._engine, self._ids, self._top = engine, ids, top
        self._end = len(ids) - 1
        self._read = 0
        separable = is_separable(engine.model.config, len(ids))
        self._caches = engine.ensemble.empty_caches(capacity=len(ids)) if separable else []

    @property
    def is_done(self) -> bool:
        return self._read == self._end

    def step(self) -> list[TokenLogProbs]:
        ensemble, vocab = self._engine.ensemble, self._engine.codec.vocab
        start, end = self._read, min(self._read + PIECE, self._end) if self._caches else self._end
        ids: Sequence[int] = [int(token) for token in self._ids[start : end + 1]]  # type: ignore[arg-type]
        hidden = ensemble.extend(self._caches, ids[:-1]) if self._caches else ensemble.hidden([ids[:-1]], None)
        self._read = end
        absent = range(len(vocab), ensemble.config.vocab_size)
        found: list[TokenLogProbs] = []
        for first in range(0, len(ids) - 1, PIECE):
            logits_TV = ensemble.logits([hidden_BTD[0, first : first + PIECE] for hidden_BTD in hidden])
            log_probs_TV = ban(logits_TV, absent).log_softmax(dim=-1).cpu().numpy()
            found += describe(log_probs_TV, ids[first + 1 : first + 1 + len(log_probs_TV)], self._top, vocab)
        return found

    def decoding(self) -> Decoding:
        """The state after the last token, which is read now."""
        return self._engine.ensemble.start([self._ids], caches=self._caches)


def store_row(engine: TorchEngine, ids: Sequence[object], decoding: Decoding, *, row: int = 0) -> None:
    """Remember a row for prompts that begin like it: a copy of its keys and values, which are those of these tokens."""
    if engine.prefixes is not None and is_separable(engine.model.config, len(ids)):
        engine.prefixes.store(ids, [cache.copy(len(ids), row=row) for cache in decoding.caches])
