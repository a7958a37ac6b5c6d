"""Deduplication and sampling of a large corpus beside other programs: python docs/benchmarks/selection.py [RECORDS]

Writes RECORDS (5,000,000) conversations, of which a fifth repeat an earlier question, and selects a million of the
others; then `sort -u` and, if it is installed, DuckDB find the unique questions of the same file. Every figure is of
a process of its own. `near` instead of a number measures near duplicates.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers import IndexCache, open_reader
from onmt_llm.data.selection import selected_reader
from onmt_llm.data.selection.duplicates import NearDuplicates
from onmt_llm.optional import require

SAMPLE = 5
"""One record in this many is sampled."""


def write(path: Path, records: int) -> None:
    draw = random.Random(1)
    with path.open("w") as file:
        for number in range(records):
            question = draw.randrange(number) if number and draw.random() < 0.25 else number
            kind = "translation" if number % 10 == 0 else "chat"
            file.write(
                f'{{"id": "{kind}_{number}", "instruction": "How far is it from town {question} to the next one?", '
                f'"output": "About {number % 97} kilometres, if you take the road along the river."}}\n'
            )


def ours(path: Path, records: int) -> str:
    corpus = CorpusConfig(path_jsonl=str(path), unique_by=["instruction"], sample=records // SAMPLE)
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        reader = selected_reader("all", open_reader("all", corpus), corpus, IndexCache(Path(cache)))
        passed = {"duplicate": 0, "not_sampled": 0}
        selected = 0
        for record in iter(reader.read, None):
            selected += 1
            for reason, number in record.passed:
                passed[reason] += number
    return f"{records - passed['duplicate']:,} unique, {selected:,} selected"


def sort_u(path: Path, records: int) -> str:
    command = f'grep -o \'"instruction": "[^"]*"\' {path} | LC_ALL=C sort -u -S 500M -T {path.parent} | wc -l'
    return f"{int(subprocess.run(command, shell=True, capture_output=True, check=True).stdout):,} unique"


def duckdb(path: Path, records: int) -> str:
    database = require("duckdb", "this comparison").connect(config={"threads": 1, "memory_limit": "600MB"})
    query = f"select count(distinct instruction) from read_json('{path}', format='newline_delimited')"
    return f"{database.execute(query).fetchone()[0]:,} unique"


def near(texts: int = 20_000) -> None:
    """Time and memory of near duplicates, of texts of 60 words."""
    draw, found = random.Random(1), NearDuplicates(0.8)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for _ in range(texts):
        found.add(" ".join(f"w{draw.randrange(5000)}" for _ in range(60)))
    seconds, memory = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"near: {1000 * seconds / texts:.2f} CPU ms and {1024 * memory / texts:,.0f} bytes per text")


PROGRAMS = {"ours": ours, "sort": sort_u, "duckdb": duckdb}


def main() -> None:
    if sys.argv[1:] == ["near"]:
        near()
        return
    if len(sys.argv) > 2:
        program, file, count = sys.argv[1:]
        start, result = time.perf_counter(), PROGRAMS[program](Path(file), int(count))
        wall = time.perf_counter() - start
        own, child = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = own.ru_utime + own.ru_stime + child.ru_utime + child.ru_stime
        peak = max(own.ru_maxrss, child.ru_maxrss) / 1024
        print(f"{program}: {result}; {wall:.0f} s, {seconds:.0f} CPU s, {peak:,.0f} MiB")
        return
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        path = Path(folder) / "chats.jsonl"
        write(path, records)
        print(f"{records:,} records, {path.stat().st_size / 1e9:.2f} GB")
        for program in PROGRAMS:
            subprocess.run([sys.executable, __file__, program, str(path), str(records)], check=False)


if __name__ == "__main__":
    main()
