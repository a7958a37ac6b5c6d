"""Prompt lookup decoding (Saxena 2023): tokens that followed the same words earlier are guessed, and verified together.

A forward pass of some rows costs a CPU or GPU far less than as many of a single row, because each reads all weights.
So the tokens that followed the newest ones at their last occurrence, in the prompt or the answer, are read together
with the newest token. As long as the search then chooses the tokens that were guessed, it needs no further pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from onmt_llm.config.model import ModelConfig
from onmt_llm.generate.search.state import Decoding, PromptIds

_NGRAM = 4
"""Tokens that must have occurred before, in this order, for a guess."""
_SIZES = {4: 4, 8: 16}
"""Tokens of a guess, by the number of tokens that repeat earlier ones: the longer a copy is, the longer it will be. In
float32 on a CPU a pass of 2, 5, 9 and 17 tokens takes 1.8, 2.3, 2.4 and 3.2 times as long as one of a single token
(int8: 1.0, 1.2, 1.6 and 2.4 times; SmolLM2-135M), so fewer hardly cost less."""
_LONGEST = 24
"""Repeated tokens that are counted, at most."""
_WORTH = 3
"""Accepted tokens from which a guess has saved more than it cost."""


class DraftedDecoding:
    """A `Decoding` of one row that reads guessed tokens in advance.

    The logits are those of the plain decoding, up to the rounding of a forward pass of several rows; so any search
    chooses the same tokens, whatever its constraints are and also where it draws them.

    Args:
        decoding: Of one row; it must not be used beside this one, until `plain` returns it.
        ids: All tokens that it has read.
        end: Most tokens that are read, guesses included.

    Attributes:
        logits_RV: float32 logits of the row's next token.
    """

    def __init__(self, decoding: Decoding, ids: Sequence[int], *, end: int) -> None:
        self._decoding = decoding
        self._tokens = NgramIndex(ids)
        self._padding = decoding.caches[0].length - len(ids)
        self._need = RepeatNeeded()
        self._end = end
        self._draft: list[int] = []
        self._accepted = 0
        self._ahead_TV: Tensor | None = None
        self.source_lengths = decoding.source_lengths
        self.logits_RV = decoding.logits_RV

    def step(self, tokens: Sequence[int] | Tensor) -> None:
        """Append a token."""
        token = int(tokens[0])
        before = len(self._tokens)
        self._tokens.append(token)
        if self._accepted < len(self._draft) and token == self._draft[self._accepted]:
            self._accepted += 1
        else:
            self._decoding.trim(self._padding + before)
            self._need.record(len(self._draft), self._accepted)
            self._draft = self._tokens.guess(self._need.tokens, self._end - before - 1)
            self._accepted = 0
            self._ahead_TV = self._decoding.extend([token, *self._draft])
        assert self._ahead_TV is not None
        self.logits_RV = self._ahead_TV[self._accepted : self._accepted + 1]

    def select(self, rows: Sequence[int]) -> None:
        """Nothing: there is one row."""
        assert list(rows) == [0], "guesses are made for one row"

    def plain(self) -> Decoding:
        """The decoding, without the guesses that were read in advance; this one must not be used any more."""
        self._decoding.trim(self._padding + len(self._tokens))
        self._decoding.logits_RV = self.logits_RV
        return self._decoding


class NgramIndex:
    """Tokens of a prompt and its answer, in which an earlier occurrence of the newest ones is found at once.

    Args:
        ids: The prompt.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.append(token)

    def __len__(self) -> int:
        return len(self._ids)

    def append(self, token: int) -> None:
        if len(self._ids) >= _NGRAM:
            self._after[tuple(self._ids[-_NGRAM:])] = len(self._ids)
        self._ids.append(token)

    def guess(self, need: int, most: int) -> list[int]:
        """What followed the newest tokens where they occurred last; none if fewer than `need` tokens repeat.

        Where that is fewer tokens back than are guessed, the text is taken to repeat itself with this period.

        Args:
            need: Tokens that must repeat, at least four.
            most: Tokens of the guess.
        """
        place = self._after.get(tuple(self._ids[-_NGRAM:]))
        repeated = 0 if place is None else self._repeated(place)
        if place is None or repeated < need:
            return []
        count = min(most, max(size for least, size in _SIZES.items() if least <= repeated))
        period = self._ids[place : place + count] if count > 0 else []
        return [period[i % len(period)] for i in range(count)]

    def _repeated(self, place: int) -> int:
        """How many tokens before `place` are the newest ones."""
        most = min(place, _LONGEST)
        return next((n for n in range(most) if self._ids[place - 1 - n] != self._ids[-1 - n]), most)


class RepeatNeeded:
    """How many tokens must repeat for the next guess: twice as many after a guess that did not pay, so that text whose
    phrases recur by chance costs hardly anything.

    Attributes:
        tokens: The number.
    """

    def __init__(self) -> None:
        self.tokens = _NGRAM

    def record(self, guessed: int, accepted: int) -> None:
        """Learn from a guess."""
        if guessed:
            self.tokens = _NGRAM if accepted >= min(guessed, _WORTH) else min(2 * self.tokens, _LONGEST)


def with_lookup(
    decoding: Decoding, ids: PromptIds, *, config: ModelConfig, max_length: int
) -> DraftedDecoding | Decoding:
    """A decoding of one row with guesses, or itself where they would not pay or would change an answer.

    Args:
        decoding: Of one row.
        ids: All tokens that it has read.
        config: Of the model.
        max_length: Most tokens that follow them.
    """
    end, longest = len(ids) + max_length - 1, _longest(config)
    end = end if longest is None else min(end, longest)
    if end < len(ids) + 2:
        return decoding
    return DraftedDecoding(decoding, cast("Sequence[int]", ids), end=end)


def _longest(config: ModelConfig) -> int | None:
    """Most tokens of a sequence with guesses; None = any number, 0 = never.

    With experts each row reads other weights, so that several rows cost as much as several passes. With `dynamic` and
    `longrope` positions, beyond the original context, a token's frequencies depend on the tokens read with it.
    """
    if not config.is_decoder_only or config.moe_layers:
        return 0
    if config.position == "learned":
        return config.max_position
    by_length = config.position == "rotary" and config.rope.scaling in ("dynamic", "longrope")
    return config.rope.original_max_position if by_length else None
