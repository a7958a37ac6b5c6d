"""Indexing, counting and random access of a text file: seconds, bytes per second, memory.

python docs/benchmarks/line_index.py [lines] [folder]
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers import IndexCache, ShuffledReader, open_reader

Result = TypeVar("Result")
READ = 200_000


def write(path: Path, lines: int) -> None:
    """Lines of 20 to 180 words."""
    draw = random.Random(1)
    stock = [
        " ".join(draw.choices(["alpha", "be", "gamma", "delta", "of"], k=draw.randint(20, 180))) for _ in range(999)
    ]
    with path.open("w") as file:
        for number in range(lines):
            file.write(f"{number} {stock[number * 7919 % 999]}\n")


def timed(what: str, work: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:48} {seconds:9.3f} s   peak {peak:6.1f} MiB")
    return result, seconds


def main() -> None:
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        path, cache = Path(folder) / "text", Path(folder) / "index"
        write(path, lines)
        size = path.stat().st_size
        print(f"{lines} lines, {size / 1e9:.2f} GB")
        corpus = CorpusConfig(path_src=str(path))

        def reader() -> ShuffledReader:
            return ShuffledReader("c", open_reader("c", corpus, cache=IndexCache(cache)), seed=1)

        def take(shuffled: bool) -> int:
            source = reader() if shuffled else open_reader("c", corpus)
            return sum(len(source.read().parts[0]) for _ in range(min(READ, lines)))  # type: ignore[union-attr]

        timed("count the lines", lambda: IndexCache().lines(path))
        _, seconds = timed("make the index", lambda: reader().count())
        print(f"{'':48} {size / seconds / 1e9:9.2f} GB/s")
        timed("open it again", lambda: reader().count())
        _, seconds = timed(f"read {READ} records in order", lambda: take(False))
        _, shuffled = timed(f"read {READ} records shuffled", lambda: take(True))
        each = min(READ, lines)
        print(f"a record in order {seconds / each * 1e6:.2f} us, shuffled {shuffled / each * 1e6:.2f} us")
        index = next(cache.glob("*.index"))
        print(f"index: {index.stat().st_size / lines:.2f} bytes per line")


if __name__ == "__main__":
    main()
