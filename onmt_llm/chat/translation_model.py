"""Texts translated by an encoder-decoder model through a scheduler, with the words that belong together."""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.log import logger
from onmt_llm.text.decoding import StreamDecoder
from onmt_llm.text.languages import places
from onmt_llm.text.prompts import encode_line

if TYPE_CHECKING:
    from onmt_llm.generate.scheduling.scheduler import Scheduler
    from onmt_llm.text.codec import Codec

AT_ONCE = 8
"""Lines of one text that are translated at the same time: other visitors have their turn between them."""


@dataclass(frozen=True)
class ShownWord:
    """A word, or the white space between two.

    Attributes:
        text: As it is shown.
        number: Its number among the words of its line; None = white space.
        sources: For a word of a translation, the numbers of the words of the source that it is aligned with.
    """

    text: str
    number: int | None = None
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class AlignedLine:
    """A line of a text and its best translation, word by word."""

    source: Sequence[ShownWord]
    target: Sequence[ShownWord]


@dataclass(frozen=True)
class TranslatedText:
    """A translation as far as it has come.

    Attributes:
        texts: The translations of the lines so far: the best ones as one text, the second best ones, and so on.
        aligned: The words of the best ones; empty if the model reports no alignment.
        lines: Lines of the source.
        done: Lines that are translated.
        waiting: Requests of others that are answered before the next line; 0 while it is translated.
    """

    texts: Sequence[str]
    aligned: Sequence[AlignedLine]
    lines: int
    done: int
    waiting: int = 0


class TranslationModel:
    """Translates texts of several lines.

    Args:
        scheduler: Runs the model.
        options: How to search.
        languages: Codes of the source and target languages to begin with; "" = the model's own.
        name: What visitors see.

    Attributes:
        languages: Codes of the languages of a multilingual model; empty = it has one pair.
        defaults: Codes of the source and target languages to begin with.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        options: GenerationConfig,
        *,
        languages: tuple[str, str] = ("", ""),
        name: str = "",
    ) -> None:
        self.name = name
        self._scheduler, self._options = scheduler, options
        config = scheduler.codec.config
        self.languages = list(config.languages.tokens) if places(config.sequences) else []
        own = config.languages.example if self.languages else ("", "")
        self.defaults = languages[0] or own[0], languages[1] or own[1]
        self._aligns = self._reports_alignment()

    def translate(self, text: str, *, src: str = "", tgt: str = "", alternatives: int = 1) -> Iterator[TranslatedText]:
        """Translate a text line by line; the last result is complete. Closing the iterator stops the engine.

        Args:
            text: Any text.
            src: Code of its language, for a multilingual model; "" = the default.
            tgt: Code of the language to translate into, likewise.
            alternatives: Number of translations.

        Raises:
            OnmtLlmError: A language is unknown, the text does not fit into the model, or too many visitors wait.
        """
        src, tgt = src or self.defaults[0], tgt or self.defaults[1]
        codec = self._scheduler.codec.for_languages(src, tgt)
        prompts = [encode_line(line, codec, None) for line in text.split("\n")]
        beam = self._options.beam_size if self._options.draws else max(self._options.beam_size, alternatives)
        changes = {"n_best": alternatives, "beam_size": beam, "report_align": self._aligns}
        options = self._options.model_copy(update=changes)
        found: list[Sequence[Hypothesis]] = []
        aligned: list[AlignedLine] = []
        tickets: deque[Ticket] = deque()
        submitted = 0
        try:
            while len(found) < len(prompts):
                while submitted < len(prompts) and len(tickets) < AT_ONCE:
                    tickets.append(
                        self._scheduler.submit(Request(prompts[submitted], options, src_lang=src, tgt_lang=tgt))
                    )
                    submitted += 1
                with suppress(TimeoutError):
                    found.append(tickets[0].result(timeout=0.25))
                    tickets.popleft()
                    if found[-1][0].alignment is not None:
                        aligned.append(align_words(codec, prompts[len(found) - 1], found[-1][0]))
                ranks = range(min(map(len, found), default=0))
                texts = ["\n".join(line[rank].text for line in found) for rank in ranks]
                waiting = tickets[0].place if tickets else 0
                yield TranslatedText(texts, [*aligned], len(prompts), len(found), waiting)
        finally:
            for ticket in tickets:
                ticket.cancel()

    def _reports_alignment(self) -> bool:
        """Whether the model can align, which an empty text shows."""
        options = self._options.model_copy(update={"report_align": True})
        src, tgt = self.defaults
        try:
            self._scheduler.submit(Request([], options, src_lang=src, tgt_lang=tgt)).result()
        except (ConfigError, UnsupportedError) as error:
            logger.info("The page shows no alignment: %s", error.message)
            return False
        return True


def align_words(codec: Codec, prompt: Sequence[str], hypothesis: Hypothesis) -> AlignedLine:
    """The words of a source and of its translation, from the alignment of their tokens.

    Args:
        codec: Decodes the tokens of both sides.
        prompt: Tokens of the source, with those of its frame.
        hypothesis: With its alignment.
    """
    prefix, suffix = codec.source_frame
    inner = list(prompt)[len(prefix) : len(prompt) - len(suffix)]
    source, source_words = split_words(_texts(codec.src_tokenizer.stream_decoder(), inner))
    target, target_words = split_words(_texts(codec.stream_decoder(), hypothesis.tokens))
    linked: dict[int, set[int]] = {}
    for words, place in zip(target_words, hypothesis.alignment or (), strict=False):
        if 0 <= place - len(prefix) < len(source_words):
            for word in words:
                linked.setdefault(word, set()).update(source_words[place - len(prefix)])
    numbered = [
        ShownWord(word.text, word.number, tuple(sorted(linked.get(word.number, ()))))
        if word.number is not None
        else word
        for word in target
    ]
    return AlignedLine(source, numbered)


def split_words(pieces: Sequence[str]) -> tuple[list[ShownWord], list[set[int]]]:
    """The words of a text, and for each of its pieces the numbers of the words in which it occurs.

    White space separates words. Wide characters (Chinese, Japanese, Korean) are words of their own.
    """
    words: list[ShownWord] = []
    owners: list[set[int]] = []
    count = 0
    continues = False
    for piece in pieces:
        owned: set[int] = set()
        for character in piece:
            is_space = character.isspace()
            is_wide = unicodedata.east_asian_width(character) in ("W", "F")
            if continues and not is_wide and words[-1].text.isspace() == is_space:
                words[-1] = ShownWord(words[-1].text + character, words[-1].number)
            else:
                words.append(ShownWord(character, None if is_space else count))
                count += not is_space
            continues = not is_wide
            if not is_space:
                owned.add(count - 1)
        owners.append(owned)
    return words, owners


def _texts(decoder: StreamDecoder, tokens: Sequence[str]) -> list[str]:
    """The text of each token; that of an incomplete character belongs to the token that completes it."""
    texts = [decoder.push(token) for token in tokens]
    rest = decoder.flush()
    return [*texts[:-1], texts[-1] + rest] if texts else []
