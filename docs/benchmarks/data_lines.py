"""Instruction-like lines for the benchmarks of the data, of about 100 tokens each, written at disk speed.

Stretches of real text in their own order, in the shape of the Vicuna recipe's lines. Real corpora go on bringing words
that were never seen before, however long one reads (Heaps' law), which a few megabytes of text cut up again and again
would not: so two words of a hundred are made up anew (numbers, names), about what English does after some tens of
millions of words, punctuation and inflection included.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

NEW_WORDS = 0.02
BREAK = "｟newline｠"
_SYLLABLES = [a + b for a in "bcdfglmnprstv" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ol", "us")]


def lines(texts: Sequence[Path], number: int, *, seed: int = 1, new_words: float = NEW_WORDS) -> Iterator[str]:
    """So many lines, each with its line break; always the same for a seed."""
    rng = random.Random(seed)
    words = [word for text in texts for word in text.read_text(encoding="utf-8").replace("｟", "").split()]

    def stretch(shortest: int, longest: int) -> str:
        length = rng.randrange(shortest, longest)
        start = rng.randrange(len(words) - length)
        taken = words[start : start + length]
        for _ in range(_number(rng, length * new_words)):
            taken[rng.randrange(length)] = _new_word(rng)
        return " ".join(taken)

    for _ in range(number):
        question, answer = stretch(5, 25), stretch(15, 75)
        yield f"### Instruction:{BREAK}{question}{BREAK}{BREAK}### Response:{BREAK}{answer}\n"


def write(path: Path, texts: Sequence[Path], number: int, *, seed: int = 1, block: int = 200_000) -> None:
    """Write so many lines. Above `block` of them, the block is written again with a number in every line, for speed."""
    first = "".join(lines(texts, min(number, block), seed=seed)).splitlines(keepends=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for start in range(0, number, block):
            if start:
                file.writelines(f"{line[:-1]} {start + place}\n" for place, line in enumerate(first[: number - start]))
            else:
                file.writelines(first)


def _number(rng: random.Random, mean: float) -> int:
    """A whole number with this mean."""
    return int(mean) + (rng.random() < mean % 1)


def _new_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return str(rng.randrange(10 ** rng.randrange(2, 8)))
    word = "".join(rng.choices(_SYLLABLES, k=rng.randrange(2, 5)))
    return word.capitalize() if kind < 0.7 else word
