"""An old and a new task for a toy language model.

    python recipes/control_llm/make_toy_data.py toy

The old tasks are two languages of 30 words, in which each word is followed by one of four others with fixed
probabilities. The new task, which the model has never seen, is to count in words of the second language: `count from
gobi:` is answered by the ten words after `gobi`. So it has nothing in common with the first language, and contradicts
the second one.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

PROBABILITIES = [0.5, 0.25, 0.15, 0.1]
SIZES = {"train": 3000, "valid": 100}
LENGTH = 16
ANSWER = 10


def make_words(rng: random.Random, count: int) -> list[str]:
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    return rng.sample([one + other for one in syllables for other in syllables], count)


def sentence(rng: random.Random, followers: dict[str, list[str]]) -> str:
    """A sentence of an old language."""
    words = [rng.choice(list(followers))]
    while len(words) < LENGTH:
        words += rng.choices(followers[words[-1]], PROBABILITIES)
    return " ".join(words)


def count_from(order: list[str], start: int) -> dict[str, str]:
    """An example of the new task."""
    answer = [order[(start + place) % len(order)] for place in range(1, ANSWER + 1)]
    return {"prompt": f"count from {order[start]}: ", "answer": " ".join(answer)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the data of the toy.")
    parser.add_argument("directory", type=Path)
    folder: Path = parser.parse_args().directory
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    words = make_words(rng, 60)
    languages = [words[:30], words[30:]]
    followers = [{word: rng.sample(language, len(PROBABILITIES)) for word in language} for language in languages]
    for split, size in SIZES.items():
        for name, language in zip(("first", "second"), followers, strict=True):
            lines = [sentence(rng, language) for _ in range(size)]
            (folder / f"{name}.{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    new = languages[1]
    examples = [json.dumps(count_from(new, start)) for start in range(len(new))]
    for split in SIZES:
        (folder / f"new.{split}.jsonl").write_text("\n".join(examples) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
