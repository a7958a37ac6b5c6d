"""Transcribed dialogues in the layout of Claire's data: a turn per line behind the tag of its speaker.

python recipes/claire/make_toy_dialogues.py toy
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

TOPICS = ["the budget", "the report", "our server", "the release", "the translation"]
DAYS = ["on Monday", "on Friday", "tomorrow", "next week"]
SIZES = {"train": 200, "valid": 20}


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Write toy dialogues.")
    parser.add_argument("directory", type=Path)
    folder: Path = parser.parse_args().directory
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    for genre, write in {"meetings": meeting, "theatre": scene}.items():
        for split, size in SIZES.items():
            dialogues = ["\n".join(write(rng)) + "\n" for _ in range(size)]
            (folder / f"{genre}.{split}.txt").write_text("\n".join(dialogues), encoding="utf-8")


if __name__ == "__main__":
    main()
