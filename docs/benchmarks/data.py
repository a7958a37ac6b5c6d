"""Tokens per second and memory of the data pipeline, compared with other programs in one run (`make bench-data`).

    python docs/benchmarks/data.py -text FILE... [-opennmt PYTHON] [-eole PYTHON] [-datasets PYTHON] [-rounds 3]

Instruction-like lines of about 100 tokens (see `data_lines.py`) go through the same 32k SentencePiece model, the same
filter and the same batches of tokens in each program: SentencePiece alone, OpenNMT-py 3.5.1, eole 0.6, Hugging Face
`datasets` streaming, and ours. They run alternately in separate processes, on the same cores, so that other work on the
machine affects all. A program with workers is timed both without and with as many as threads. Memory is the peak of the
whole process tree, with shared pages counted once (PSS), torch included.

OpenNMT-py, eole and `datasets` use separate interpreters, given by path; those not given are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import data_lines
import sentencepiece

PROGRAMS = Path(__file__).with_name("data_programs.py")
_POLL_S = 0.25


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    title: str
    program: str
    python: str
    workers: int = 0
    cache: bool = True


def contenders(arguments: argparse.Namespace) -> list[Contender]:
    own, workers = sys.executable, arguments.threads
    rows = [Contender("SentencePiece alone", "bare", own)]
    for title, program in (("OpenNMT-py", "opennmt"), ("eole", "eole")):
        if python := getattr(arguments, program):
            rows += [Contender(f"{title}, {number} workers", program, python, number) for number in (0, workers)]
    if arguments.datasets:
        rows.append(Contender("`datasets` streaming", "datasets", arguments.datasets))
    rows += [
        Contender("onmt_llm, 0 workers, no cache", "ours", own, cache=False),
        Contender("onmt_llm, 0 workers", "ours", own),
        Contender(f"onmt_llm, {workers} workers", "ours", own, workers),
    ]
    return [row for row in rows if not arguments.only or row.program in arguments.only]


def prepare(arguments: argparse.Namespace, work: Path) -> dict[str, object]:
    """Corpus, vocabulary, and the settings of all programs."""
    corpus = arguments.corpus or work / f"corpus.{arguments.lines}"
    if not corpus.exists():
        data_lines.write(corpus, arguments.text, arguments.lines)
    model = sentencepiece.SentencePieceProcessor(model_file=str(arguments.model))
    specials = ("<unk>", "<s>", "</s>")
    pieces = [piece for id_ in range(len(model)) if (piece := model.id_to_piece(id_)) not in specials]
    (work / "vocab").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
    return {
        "corpus": str(corpus),
        "model": str(arguments.model),
        "vocab": str(work / "vocab"),
        "work": str(work),
        "longest": arguments.longest,
        "batch_size": arguments.batch_size,
        "bucket_size": arguments.bucket_size,
        "threads": arguments.threads,
        # slightly less than whole buckets: a few lines are too long, and OpenNMT-py drops duplicates within a batch
        "first": int(arguments.bucket_size * 0.97),
        "last": int(arguments.lines * 0.97),
    }


def run(contender: Contender, job: dict[str, object], threads: int) -> tuple[float, float]:
    """Million tokens per second, and peak MiB."""
    work = Path(str(job["work"]))
    job = {**job, "program": contender.program, "workers": contender.workers, "cache": contender.cache}
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work),
    }
    cores = sorted(os.sched_getaffinity(0))[:threads]
    with (work / "out").open("w+") as out, (work / "errors").open("w+") as errors:
        child = subprocess.Popen(
            [contender.python, str(PROGRAMS), str(work / "job.json")],
            stdout=out,
            stderr=errors,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        peak = 0.0
        while child.poll() is None:
            peak = max(peak, mebibytes(child.pid))
            time.sleep(_POLL_S)
        out.seek(0)
        errors.seek(0)
        if child.returncode:
            sys.exit(f"{contender.title} failed:\n{errors.read()[-3000:]}")
        found = json.loads(out.read().strip().splitlines()[-1])
    return found["tokens"] / found["seconds"] / 1e6, peak


def mebibytes(pid: int) -> float:
    """Memory of a process and its descendants; a page that n of them share counts as 1/n each."""
    total = 0
    for process in tree(pid):
        try:
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:
            continue  # it has ended
    return total / 1024


def tree(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def table(rows: list[Contender], results: dict[str, list[tuple[float, float]]]) -> str:
    """Medians over the rounds; speed also relative to the tokeniser alone."""
    lines = ["| program | M tokens/s | of the tokeniser alone | (min - max) | peak MiB |", "|---|--:|--:|--:|--:|"]
    reference = None
    for row in rows:
        speeds, memories = zip(*results[row.title], strict=True)
        speed = statistics.median(speeds)
        reference = reference or speed
        lines.append(
            f"| {row.title} | {speed:.2f} | {speed / reference:.0%} | {min(speeds):.2f} - {max(speeds):.2f} "
            f"| {statistics.median(memories):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-text", type=Path, nargs="*", default=[], help="plain text from which lines are made")
    parser.add_argument("-corpus", type=Path, help="a file of lines to use instead, unchanged")
    parser.add_argument("-lines", type=int, default=131_072, help="lines of the corpus to read")
    parser.add_argument("-model", type=Path, default=None, help="default: the 32k model in mistral_common")
    parser.add_argument("-opennmt", help="Python interpreter with OpenNMT-py")
    parser.add_argument("-eole", help="Python interpreter with eole")
    parser.add_argument("-datasets", help="Python interpreter with datasets")
    parser.add_argument("-only", nargs="*", help="only these programs: bare ours opennmt eole datasets")
    parser.add_argument("-work", type=Path, help="folder for all files; default: a temporary one")
    parser.add_argument("-rounds", type=int, default=3)
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-batch_size", type=int, default=8192)
    parser.add_argument("-bucket_size", type=int, default=16_384)
    parser.add_argument("-longest", type=int, default=512)
    arguments = parser.parse_args()
    if not (arguments.text or arguments.corpus):
        parser.error("-text or -corpus must name files of text, but neither does")
    arguments.model = arguments.model or model_of_mistral()
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        job = prepare(arguments, work)
        rows = contenders(arguments)
        results: dict[str, list[tuple[float, float]]] = {row.title: [] for row in rows}
        for _ in range(arguments.rounds):
            for row in rows:
                results[row.title].append(run(row, job, arguments.threads))
                print(row.title, *(f"{figure:.2f}" for figure in results[row.title][-1]), file=sys.stderr, flush=True)
    print(table(rows, results))


def model_of_mistral() -> Path:
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


if __name__ == "__main__":
    main()
