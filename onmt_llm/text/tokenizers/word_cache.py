"""`WordCache`: each word encoded once, for the SentencePiece models of which that can be proved to change nothing.

Why it is exact. Byte-pair encoding begins with single characters and joins neighbours whose join is a piece, best score
first, leftmost first among equals. Where no piece holds the characters c and d side by side, nothing is ever joined
across a border between them, so the joins on its left and on its right do not know of each other: the pieces of a text
are those of its parts. Spaces are `▁` to the model; if no piece has a `▁` behind another character, every border before
a run of spaces is such a border. If no piece holds a line break (models with byte fallback), so is every border beside
one. What else must be so:

* text is not normalised (no character map), and spaces stay as many as they are, or none is there to be removed;
* no piece is "unused": the library takes such pieces apart again as it last joined them anywhere in the text;
* no unknown piece comes out: neighbouring ones become one. Texts in which one does are left to the library.

Unigram models do not qualify: their best path is found with sums of 32-bit floats over the whole text, so that a near
tie in one word can be decided by what stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from onmt_llm.text.tokenizers.sentencepiece_proto import BPE, BYTE, CONTROL, UNKNOWN, UNUSED, SentencePieceFacts

PieceIds = bytes
"""Numbers of pieces, 4 bytes each in the machine's order."""

_SPACE = "▁"
_INNER_SPACE = re.compile("[^▁]▁", re.DOTALL)
_SILENT = (UNKNOWN, CONTROL, BYTE)  # kinds that no stretch of text is joined into
_BUDGET = 24 << 20
"""Bytes that a generation of words may take."""
_ENTRY = 200
"""Bytes that a word takes besides its letters, roughly."""
_LONG = 24
"""Mean length of words from which a text has none worth keeping (Chinese, base64)."""


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
    """Numbers of the pieces of texts.

    A key that begins with a line break stands for itself, every other one for a space and itself: so a text split at
    its spaces is a list of keys. What begins a text without a space before it is kept apart.

    Args:
        facts: Of a model for which `is_provable`.
        encode: Encodes a text as the model does, but without dummy prefix and with all spaces kept; None if an unknown
            piece comes out.
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
        """Numbers of each text; None for a text that is left to the library."""
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
        except TypeError:  # a word that cannot be encoded apart
            return None

    def _split(self, text: str) -> tuple[str | None, list[str]]:
        """What a text begins with, if not with a space, and its other words as keys."""
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
    """Numbers of words, each encoded when it is first asked for.

    There are two generations: when one is full it becomes the old one, from which words that come again are taken over,
    and what did not come again for so long is forgotten.

    Args:
        encode: Encodes one.
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
    """Whether a model that removes extra white space would find some."""
    return _SPACE in text or "  " in text or text[:1] == " " or text[-1:] == " "
