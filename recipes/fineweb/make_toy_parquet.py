"""Web texts in Parquet files, in FineWeb's columns: six files of 60 texts each.

python recipes/fineweb/make_toy_parquet.py toy/data
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet

FILES, TEXTS = 6, 60
SUBJECTS = ["The river", "A small library", "The old bridge", "Our garden", "The night train", "A good dictionary"]
VERBS = ["crosses", "serves", "connects", "surrounds", "reaches", "describes"]
OBJECTS = ["the town", "two valleys", "the station", "many readers", "the northern coast", "a long history"]


def text(rng: random.Random) -> str:
    sentences = [f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}." for _ in range(rng.randint(3, 9))]
    return " ".join(sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write toy texts in Parquet files.")
    parser.add_argument("directory", type=Path)
    folder: Path = parser.parse_args().directory
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    texts = [[text(rng) for _ in range(TEXTS)] for _ in range(FILES)]
    for number, rows in enumerate(texts):
        columns = {"id": [f"{number}-{row}" for row in range(TEXTS)], "text": rows, "language": ["en"] * TEXTS}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{number:03}_00000.parquet")
    (folder.parent / "texts.txt").write_text("\n".join(texts[0]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
