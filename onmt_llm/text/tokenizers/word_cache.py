"""`WordCache`: encodes each word once, for SentencePiece models with which this provably gives the same pieces.

Why it is exact: byte-pair encoding starts from single characters and merges neighbours whose concatenation is a piece,
best score first, leftmost first among equals. If no piece contains the characters c and d side by side, nothing is ever
merged across a boundary between them, so the merges on its left and right are independent: the pieces of a text are
those of its parts. To the model a space is `▁`; if no piece has a `▁` after another character, every boundary before a
run of spaces is such a boundary. If no piece contains a line break (models with byte fallback), so is every boundary
next to one. Further conditions:

* text is not normalised (no character map), and spaces are kept, or the text has no spaces to remove;
* no piece is "unused": the library splits such pieces the way it last merged them anywhere in the text;
* no piece is unknown: adjacent unknown pieces become one. Texts with unknown pieces are left to the library.

Unigram models do not qualify: they find the best path with sums of 32-bit floats over the whole text, so the text
before a word can decide a near tie in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from onmt_llm.text.tokenizers.sentencepiece_proto import BPE, BYTE, CONTROL, UNKNOWN, UNUSED, SentencePieceFacts

PieceIds = bytes
"""Numbers of pieces, 4 bytes each in native byte order."""

_SPACE = "▁"
_INNER_SPACE = re.compile("[^▁]▁", re.DOTALL)
_SILENT = (UNKNOWN, CONTROL, BYTE)  # kinds of pieces into which no text is merged
_BUDGET = 24 << 20
"""Maximum size of a generation of words in bytes."""
_ENTRY = 200
"""Approximate overhead of a word in bytes."""
_LONG = 24
"""Mean word length from which the words of a text are not worth caching (Chinese, base64)."""


def is_provable(facts: SentencePieceFacts) -> bool:
    """Whether the pieces of a text are those of its words."""
    joined = [text for text, kind in facts.pieces if kind not in _SILENT]
    return (
        facts.model_type == BPE
        and not facts.charsmap
        and facts.escape_whitespaces
        and not facts.whitespace_as_suffix
        and all(kind != UNUSED for _, kind in facts.pieces)
        and not any(" " in text or _INNER_SPACE.search(text) for text in joined)
    )


class WordCache:
    """Encodes texts word by word into numbers of pieces.

    A key that starts with a line break stands for itself, every other key for a space followed by itself, so a text
    split at its spaces is a list of keys. A first word without a space before it has a cache of its own.

    Args:
        facts: Facts about a model for which `is_provable`.
        encode: Encodes a text with the model, but without dummy prefix and with all spaces; None if a piece is unknown.
    """

    def __init__(self, facts: SentencePieceFacts, encode: Callable[[str], PieceIds | None]) -> None:
        self._dummy_prefix = facts.add_dummy_prefix
        self._strips = facts.remove_extra_whitespaces
        breaks = not any("\n" in text for text, kind in facts.pieces if kind not in _SILENT)
        self._runs = re.compile(r" +[^ \n]*|\n[^ \n]*|[^ \n]+" if breaks else " +[^ ]*|[^ ]+")
        self._starts = (" ", "\n") if breaks else (" ",)
        self._words = _TwoGenerationCache(lambda key: encode(key if breaks and key[:1] == "\n" else f" {key}"))
        self._heads = _TwoGenerationCache(encode)

    def encode(self, texts: Sequence[str], *, continuation: bool = False) -> list[PieceIds | None]:
        """Numbers of the pieces of each text; None for a text that is left to the library."""
        prefix = " " if self._dummy_prefix and not continuation else ""
        if self._strips:
            return [None if _loses_spaces(text) else self._encode(prefix, text) for text in texts]
        return [self._encode(prefix, text) for text in texts]

    def _encode(self, prefix: str, text: str) -> PieceIds | None:
        if not text:
            return b""
        head, words = self._split(prefix + text)
        if len(text) > _LONG * (len(words) + 1):
            return None
        try:
            ids = b"".join(map(self._words.__getitem__, words))  # type: ignore[arg-type]
            return ids if head is None else self._heads[head] + ids  # type: ignore[operator]
        except TypeError:  # a word with an unknown piece
            return None

    def _split(self, text: str) -> tuple[str | None, list[str]]:
        """The first word, if the text does not start with a space, and the other words as keys."""
        if _SPACE in text:
            text = text.replace(_SPACE, " ")
        if "  " in text:
            runs = self._runs.findall(text)
            words = [run[1:] if run[0] == " " else run for run in runs]
            return (None if text.startswith(self._starts) else words.pop(0)), words
        if "\n" in self._starts and "\n" in text:
            text = text.replace("\n", " \n")
        if text[0] == " ":
            return None, text[1:].split(" ")
        head, space, rest = text.partition(" ")
        return head, rest.split(" ") if space else []


class _TwoGenerationCache(dict[str, "PieceIds | None"]):
    """A bounded cache of encoded words.

    It has two generations: a full one becomes the old one, and replaces the previous old one. Words that are used again
    are copied from the old generation to the new one; the others are dropped with it.

    Args:
        encode: Encodes a word.
    """

    def __init__(self, encode: Callable[[str], PieceIds | None]) -> None:
        super().__init__()
        self._encode = encode
        self._old: dict[str, PieceIds | None] = {}
        self._size = 0

    def __missing__(self, word: str) -> PieceIds | None:
        ids = self._old[word] if word in self._old else self._encode(word)
        if self._size > _BUDGET:
            self._old = dict(self)
            self.clear()
            self._size = 0
        self._size += _ENTRY + len(word)
        self[word] = ids
        return ids


def _loses_spaces(text: str) -> bool:
    """Whether a model that removes extra white space would remove some."""
    return _SPACE in text or "  " in text or text[:1] == " " or text[-1:] == " "
