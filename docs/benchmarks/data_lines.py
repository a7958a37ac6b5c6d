"""Instruction-like lines of about 100 tokens for the data benchmarks, written at disk speed.

The lines are passages of real text, in order, in the format of the Vicuna recipe. Real corpora keep introducing new
words (Heaps' law); a few megabytes of text cut up repeatedly would not. So two words in a hundred are newly generated
(numbers, names), about the rate of English after some tens of millions of words, punctuation and inflection included.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

NEW_WORDS = 0.02
BREAK = "｟newline｠"
_SYLLABLES = [a + b for a in "bcdfglmnprstv" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "ol", "us")]


def lines(texts: Sequence[Path], number: int, *, seed: int = 1, new_words: float = NEW_WORDS) -> Iterator[str]:
    """The given number of lines, each with its line break; deterministic for a seed."""
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
    """Write the lines. Beyond `block` of them, the block is repeated with a number in every line, for speed."""
    first = "".join(lines(texts, min(number, block), seed=seed)).splitlines(keepends=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for start in range(0, number, block):
            if start:
                file.writelines(f"{line[:-1]} {start + place}\n" for place, line in enumerate(first[: number - start]))
            else:
                file.writelines(first)


def _number(rng: random.Random, mean: float) -> int:
    """A random integer with this mean."""
    return int(mean) + (rng.random() < mean % 1)


def _new_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return str(rng.randrange(10 ** rng.randrange(2, 8)))
    word = "".join(rng.choices(_SYLLABLES, k=rng.randrange(2, 5)))
    return word.capitalize() if kind < 0.7 else word
