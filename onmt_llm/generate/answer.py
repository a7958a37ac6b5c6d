"""Incremental text of one answer while its tokens arrive, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.text.decoding import StreamDecoder


class AnswerText:
    """Decodes an answer token by token, and ends it at the first stop string.

    Text that could be the start of a stop string is held back until it cannot be one. So returned text is final, even
    if a stop string spans several tokens.

    Args:
        decoder: A fresh stream decoder.
        stops: Strings at which the answer ends; they are not part of it.
    """

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = [stop for stop in stops if stop]
        self._decoded = ""
        self._returned = 0
        self._lengths: list[int] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """The text returned so far; the whole answer after `finish`."""
        return self._decoded[: self._returned]

    @property
    def token_count(self) -> int:
        """Number of pushed tokens in the answer: all, or those that end before the stop string."""
        if not self.stopped:
            return len(self._lengths)
        lengths = [0, *self._lengths]
        return lengths.index(max(length for length in lengths if length <= self._returned))

    def push(self, token: str) -> str:
        """Add the next token; return the text that is final now."""
        if self.stopped:
            return ""
        self._decoded += self._decoder.push(token)
        self._lengths.append(len(self._decoded))
        return self._release(hold_back=True)

    def finish(self) -> str:
        """End the answer; return the rest of the text."""
        if self.stopped:
            return ""
        self._decoded += self._decoder.flush()
        return self._release(hold_back=False)

    def _release(self, *, hold_back: bool) -> str:
        found = [at for at in (self._decoded.find(stop, self._returned) for stop in self._stops) if at >= 0]
        self.stopped = bool(found)
        final = len(self._decoded) - (self._possible_stop() if hold_back else 0)
        end = min(found, default=final)
        new, self._returned = self._decoded[self._returned : end], end
        return new

    def _possible_stop(self) -> int:
        """Length of the longest suffix of the text that is a prefix of a stop string."""
        waiting = self._decoded[self._returned :]
        longest = min(len(waiting), max(map(len, self._stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(waiting[-n:]) for stop in self._stops)), 0)
