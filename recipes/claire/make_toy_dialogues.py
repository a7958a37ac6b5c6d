"""Transcribed dialogues in the layout of Claire's data: a folder per data set, a turn per line, behind its speaker.

python recipes/claire/make_toy_dialogues.py toy
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

TOPICS = ["the budget", "the report", "our server", "the release", "the translation"]
DAYS = ["on Monday", "on Friday", "tomorrow", "next week"]
SIZES = {"train": 100, "test": 10}


def meeting(rng: random.Random) -> list[str]:
    topic, day = rng.choice(TOPICS), rng.choice(DAYS)
    first, second = rng.sample(["speaker001", "speaker002", "speaker003"], 2)
    return [
        f"[{first}:] Shall we talk about {topic} {day}?",
        f"[{second}:] Yes, {day}. [NOISE] Who prepares {topic}?",
        f"[{first}:] I do. You have {topic} {day}.",
        f"[{second}:] Thank you. [LAUGHTER] Until {day.removeprefix('on ')}.",
    ]


def scene(rng: random.Random) -> list[str]:
    topic, day = rng.choice(TOPICS), rng.choice(DAYS)
    return [
        f"[Anna:] Where is {topic}? It was here!",
        f"[Paul:] Gone, Anna. Gone {day}, they say.",
        f"[Anna:] Then we shall find {topic} {day}!",
    ]


DATASETS = {
    "EN/AMI": ("meetings", meeting),
    "EN/ICSI": ("meetings", meeting),
    "EN/Globe": ("theatre", scene),
    "EN/Savoy": ("theatre", scene),
}
"""Genre and author of each data set."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write toy dialogues.")
    parser.add_argument("directory", type=Path)
    folder: Path = parser.parse_args().directory
    rng = random.Random(1)
    rows = ["dataset,genre,conversations,turns,words"]
    for name, (genre, write) in DATASETS.items():
        for split, size in SIZES.items():
            dialogues = ["\n".join(write(rng)) + "\n" for _ in range(size)]
            file = folder / name / f"{split}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(dialogues), encoding="utf-8")
            turns = sum(text.count("\n") for text in dialogues)
            words = sum(len(text.split()) for text in dialogues)
            rows.append(f"{name}/{split.upper()},{genre},{size},{turns},{words}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
