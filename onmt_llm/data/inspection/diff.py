"""Differences between two texts: unchanged, added and removed stretches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST_WORK = 4_000_000
"""Comparisons above which the changed middle is shown as a whole."""

DiffKind = Literal["same", "added", "gone"]


class Stretch(NamedTuple):
    """Consecutive words of the new or of the old text."""

    kind: DiffKind
    words: Sequence[str]


def compare(old: Sequence[str], new: Sequence[str]) -> list[Stretch]:
    """Stretches in order: those that are not `gone` are `new`, those that are not `added` are `old`."""
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle = _compare(old[head : len(old) - tail], new[head : len(new) - tail])
    stretches = [Stretch("same", new[:head]), *middle, Stretch("same", new[len(new) - tail :])]
    return [stretch for stretch in stretches if stretch.words]


def compare_texts(old: str, new: str) -> list[tuple[DiffKind, str]]:
    """Compare two texts word by word."""
    return [(kind, "".join(words)) for kind, words in compare(_WORDS.findall(old), _WORDS.findall(new))]


def _common(old: Sequence[str], new: Sequence[str]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def _compare(old: Sequence[str], new: Sequence[str]) -> list[Stretch]:
    if len(old) * len(new) > _MOST_WORK:
        return [Stretch("gone", old), Stretch("added", new)]
    found: list[Stretch] = []
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            found.append(Stretch("same", new[c:d]))
        else:
            found += [Stretch("gone", old[a:b]), Stretch("added", new[c:d])]
    return found
