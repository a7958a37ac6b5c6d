"""Twenty million lines: time from launch to the first batch, and memory while reading two million examples.

    python docs/benchmarks/data_20m.py -text FILE... -work FOLDER [-lines 20000000]

Lines as in `data.py` (about 10 GB); if the disk has less room than twice that, as many as fit, and the output says so.
A launch is timed in a new process, from before Python starts to the first batch, with the corpus dropped from the page
cache first. Memory is that of the process itself (PSS), every 200,000 examples.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import data
import data_lines

_BYTES_A_LINE = 520
_STEP = 200_000


def child(job: dict[str, object]) -> None:
    """Iterate over the batches of the job's corpus; print the time of the first, and memory at intervals."""
    from data_programs import pipeline_of

    examples = 0
    for batch in pipeline_of(job):
        if not examples:
            print(json.dumps({"first_batch": time.time(), "mebibytes": data.mebibytes(os.getpid())}), flush=True)
        before, examples = examples, examples + batch.num_examples
        if examples // _STEP > before // _STEP:
            print(json.dumps({"examples": examples, "mebibytes": data.mebibytes(os.getpid())}), flush=True)
        if examples >= int(str(job["examples"])):
            break
    os._exit(0)


def launch(
    job: dict[str, object], work: Path, examples: int, **options: object
) -> tuple[float, list[dict[str, float]]]:
    """Seconds from launch to the first batch, and the output of the process."""
    (work / "job.json").write_text(json.dumps({**job, "examples": examples, **options}), encoding="utf-8")
    began = time.time()
    said = subprocess.run(
        [sys.executable, __file__, "-child", str(work / "job.json")], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return lines[0]["first_batch"] - began, lines


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-text", type=Path, nargs="*", default=[], help="plain text from which lines are made")
    parser.add_argument("-work", type=Path, help="folder for the corpus and its index; both are kept")
    parser.add_argument("-lines", type=int, default=20_000_000)
    parser.add_argument("-examples", type=int, default=2_000_000, help="examples over which memory is measured")
    parser.add_argument("-workers", type=int, default=0)
    parser.add_argument("-model", type=Path, default=None, help="default: the 32k model in mistral_common")
    parser.add_argument("-child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child.read_text(encoding="utf-8")))
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    lines = min(arguments.lines, shutil.disk_usage(work).free // 2 // _BYTES_A_LINE)
    corpus = work / f"corpus.{lines}"
    if not corpus.exists():
        data_lines.write(corpus, arguments.text, lines)
    arguments.corpus, arguments.model = corpus, arguments.model or data.model_of_mistral()
    arguments.lines, arguments.longest, arguments.batch_size, arguments.threads = lines, 512, 8192, 2
    arguments.bucket_size = 16_384
    job = {**data.prepare(arguments, work), "workers": arguments.workers, "cache": True, "index": str(work / "index")}
    gigabytes = corpus.stat().st_size / 1e9
    print(f"{lines:,} lines, {gigabytes:.1f} GB" + (" (the disk has no space for more)" * (lines < arguments.lines)))
    began = time.perf_counter()
    with corpus.open("rb", buffering=0) as file:
        forget(corpus)
        sum(1 for _ in takewhile(bool, iter(lambda: file.read(1 << 22), b"")))
    print(f"reading it once: {time.perf_counter() - began:.1f} s")
    print("\n| launch to first batch | s |\n|---|--:|")
    for shuffle in ("none", "global"):
        shutil.rmtree(work / "index", ignore_errors=True)
        for index in ("no index yet", "index cached"):
            forget(corpus)
            seconds, _ = launch(job, work, 1, shuffle=shuffle)
            print(f"| shuffle: {shuffle}, {index}, corpus not in memory | {seconds:.1f} |", flush=True)
    _, said = launch(job, work, arguments.examples, shuffle="none")
    print("\n| examples | MiB |\n|--:|--:|")
    for each in said:
        print(f"| {each.get('examples', 0):,} | {each['mebibytes']:.0f} |")


if __name__ == "__main__":
    main()
