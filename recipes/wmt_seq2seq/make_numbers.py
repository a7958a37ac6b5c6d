"""Numbers and their English names, two text files per corpus: a language pair that anyone can generate and check.

    python recipes/wmt_seq2seq/make_numbers.py numbers

writes `train.digits`, `train.words`, `valid.digits`, `valid.words`, `test.digits` and `test.words` into the folder:
`4 0 1 7` and `four thousand seventeen`. No number occurs in two corpora. Spaces separate the digits, so that each is a
token.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

SIZES = {"valid": 200, "test": 1000, "train": 40000}
LIMIT = 10**6
SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def name(number: int) -> str:
    """A number below a million in words.

    Example:
        >>> name(4017)
        'four thousand seventeen'
    """
    if number < 20:
        return SMALL[number]
    if number < 100:
        return _joined(TENS[number // 10 - 2], number % 10)
    for unit, word in ((1000, "thousand"), (100, "hundred")):
        if number >= unit:
            return _joined(f"{name(number // unit)} {word}", number % unit)
    raise AssertionError(number)


def _joined(head: str, rest: int) -> str:
    return f"{head} {name(rest)}" if rest else head


def draw(count: int, seed: int) -> list[int]:
    """Distinct numbers, evenly distributed over lengths as far as there are enough of them."""
    chance = random.Random(seed)
    numbers: dict[int, None] = {}
    while len(numbers) < count:
        numbers[chance.randrange(10 ** chance.randint(1, len(str(LIMIT - 1))))] = None
    return list(numbers)


def write(folder: Path, seed: int = 1) -> None:
    """Write all files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = draw(sum(SIZES.values()), seed)
    # short numbers are drawn first: each part gets its share of them
    random.Random(seed).shuffle(numbers)
    start = 0
    for part, size in SIZES.items():
        chosen = numbers[start : start + size]
        start += size
        (folder / f"{part}.digits").write_text("".join(" ".join(str(n)) + "\n" for n in chosen), encoding="utf-8")
        (folder / f"{part}.words").write_text("".join(name(n) + "\n" for n in chosen), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("-seed", type=int, default=1)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
