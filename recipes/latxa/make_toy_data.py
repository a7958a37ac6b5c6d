"""Texts and conversations as for Latxa, in a few words of Basque and English.

    python recipes/latxa/make_toy_data.py toy

writes `texts.jsonl`, `instructions.jsonl`, `valid_basque.jsonl` and `valid_english.jsonl`, and their words in
`words.txt` for the tokeniser.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

NUMBERS = {
    "eu": ["zero", "bat", "bi", "hiru", "lau", "bost", "sei", "zazpi", "zortzi", "bederatzi"],
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
}
QUESTIONS = {"eu": "Zein da {} eta gero?", "en": "What comes after {}?"}
ANSWERS = {"eu": "{} da.", "en": "It is {}."}
SIZES = {"texts": 200, "instructions": 400, "valid": 20}

Record = dict[str, object]


def conversation(rng: random.Random, language: str) -> Record:
    number = rng.randrange(9)
    words = NUMBERS[language]
    return {
        "conversation_id": f"{rng.choice(['chat', 'math', 'translation'])}_{rng.randrange(10**6)}",
        "conversations": [
            {"role": "user", "content": QUESTIONS[language].format(words[number])},
            {"role": "assistant", "content": ANSWERS[language].format(words[number + 1])},
        ],
    }


def text(rng: random.Random) -> Record:
    first = rng.randrange(6)
    return {"text": f"Zenbakiak: {', '.join(NUMBERS['eu'][first : first + rng.randint(2, 4)])}."}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write toy texts and conversations.")
    parser.add_argument("directory", type=Path)
    folder: Path = parser.parse_args().directory
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(33)
    files = {
        "texts": [text(rng) for _ in range(SIZES["texts"])],
        "instructions": [conversation(rng, rng.choice(["eu", "en"])) for _ in range(SIZES["instructions"])],
        "valid_basque": [conversation(rng, "eu") for _ in range(SIZES["valid"])],
        "valid_english": [conversation(rng, "en") for _ in range(SIZES["valid"])],
    }
    for name, records in files.items():
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [*NUMBERS["eu"], *NUMBERS["en"], *QUESTIONS.values(), *ANSWERS.values(), "Zenbakiak:"]
    (folder / "words.txt").write_text("\n".join(words * 3) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
