"""Find dictionary phrases in a text: longest match, left to right, whole words only."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text.

    Attributes:
        start: Offset of the first character.
        end: Offset after the last character.
        key: Form used for comparison.
    """

    start: int
    end: int
    key: str


@dataclass(frozen=True, slots=True)
class Found:
    """An entry found in a text, from `start` to `end`."""

    start: int
    end: int
    entry: tuple[str, str]


Analyse = Callable[[str], list[Word]]


def exact_words(text: str) -> list[Word]:
    """Words and single punctuation marks, case-sensitive."""
    return [Word(match.start(), match.end(), match[0]) for match in _WORD.finditer(text)]


def folded_words(text: str) -> list[Word]:
    """Words and single punctuation marks, case-insensitive."""
    return [Word(match.start(), match.end(), match[0].casefold()) for match in _WORD.finditer(text)]


class Phrases:
    """A dictionary of phrases.

    Args:
        entries: (phrase, translation); if a phrase occurs more than once, the last entry is used.
        analyse: Splits texts and phrases into words.
    """

    def __init__(self, entries: Iterable[tuple[str, str]], analyse: Analyse) -> None:
        self._analyse = analyse
        self._entries: dict[tuple[str, ...], tuple[str, str]] = {}
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for phrase, translation in entries:
            keys = tuple(word.key for word in analyse(phrase))
            if keys:
                self._entries[keys] = (phrase, translation)
                lengths[keys[0]].add(len(keys))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def find(self, text: str) -> list[Found]:
        """The entries found in a text, without overlaps."""
        words = self._analyse(text)
        found = []
        place = 0
        while place < len(words):
            for length in self._lengths.get(words[place].key, ()):
                covered = words[place : place + length]
                entry = self._entries.get(tuple(word.key for word in covered))
                if entry is not None:
                    found.append(Found(covered[0].start, covered[-1].end, entry))
                    place += len(covered)
                    break
            else:
                place += 1
        return found


def locate(phrase: Sequence[Word], words: Sequence[Word], taken: Sequence[tuple[int, int]] = ()) -> Word | None:
    """The first occurrence of a phrase that does not overlap `taken` spans; None if there is none."""
    keys = [word.key for word in phrase]
    for place in range(len(words) - len(keys) + 1) if keys else ():
        if [word.key for word in words[place : place + len(keys)]] == keys:
            start, end = words[place].start, words[place + len(keys) - 1].end
            if all(end <= other_start or other_end <= start for other_start, other_end in taken):
                return Word(start, end, " ".join(keys))
    return None
