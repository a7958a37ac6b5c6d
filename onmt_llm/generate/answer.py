"""The text of one answer while its tokens arrive: incremental decoding, and the stop strings that end it."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.text.decoding import StreamDecoder


class AnswerText:
    """Collects the text of an answer and cuts it at the first stop string.

    Text that could be the beginning of a stop string is held back until it is clear that it is not, so what was given
    out never has to be taken back, also where a stop string spreads over several tokens.

    Args:
        decoder: A fresh stream decoder.
        stops: Texts at which the answer ends; they are not part of it.
    """

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = [stop for stop in stops if stop]
        self._decoded = ""
        self._given = 0
        self._lengths: list[int] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """What has been given out so far; the whole answer after `finish`."""
        return self._decoded[: self._given]

    @property
    def token_count(self) -> int:
        """How many of the pushed tokens belong to the answer: all, or those that lie wholly before the stop string."""
        if not self.stopped:
            return len(self._lengths)
        lengths = [0, *self._lengths]
        return lengths.index(max(length for length in lengths if length <= self._given))

    def push(self, token: str) -> str:
        """Take the next token; return the text that has become certain."""
        if self.stopped:
            return ""
        self._decoded += self._decoder.push(token)
        self._lengths.append(len(self._decoded))
        return self._release(hold_back=True)

    def finish(self) -> str:
        """No more tokens come; return the rest of the text."""
        if self.stopped:
            return ""
        self._decoded += self._decoder.flush()
        return self._release(hold_back=False)

    def _release(self, *, hold_back: bool) -> str:
        found = [at for at in (self._decoded.find(stop, self._given) for stop in self._stops) if at >= 0]
        self.stopped = bool(found)
        certain = len(self._decoded) - (self._unsure() if hold_back else 0)
        end = min(found, default=certain)
        new, self._given = self._decoded[self._given : end], end
        return new

    def _unsure(self) -> int:
        """Length of the longest ending of the text that a stop string begins with."""
        waiting = self._decoded[self._given :]
        longest = min(len(waiting), max(map(len, self._stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(waiting[-n:]) for stop in self._stops)), 0)
