"""Cost of the integrity checks when a model is opened: whole commands, and the checks alone.

    python docs/benchmarks/integrity.py WORK OTHER [RUNS]

WORK contains `checkpoint` and `release` (CTranslate2) of this version; OTHER contains the same two of the version to
compare with, and `code`, a checkout of that version. The commands of both versions run alternately.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "import sys; from onmt_llm.cli.translate import main; sys.exit(main())"


def seconds(code: Path, model: Path, question: Path) -> tuple[float, float]:
    """Wall time and CPU time of a process that opens a model and answers one line with one token."""
    words = ["-model", model, "-src", question, "-output", question.with_suffix(".out"), "-max_length", "1"]
    environment = {**os.environ, "PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": ""}
    start, before = time.perf_counter(), os.times()
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    # run in a folder without our package, which would take precedence over PYTHONPATH
    subprocess.run(command, cwd=question.parent, check=True, env=environment, capture_output=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used


def compare(work: Path, other: Path, runs: int) -> None:
    question = work / "question.txt"
    question.write_text("What is the capital of France?\n")
    print(
        "| opens and answers one line, median s (min) | before | now | difference (of the minima) |\n|---|--:|--:|--:|"
    )
    for model in ("checkpoint", "release"):
        pairs = [
            (seconds(other / "code", other / model, question), seconds(ROOT, work / model, question))
            for _ in range(runs + 1)
        ][1:]  # the first run reads the disk
        for number, unit in enumerate(("wall", "processor")):
            before, now = ([each[number] for each in side] for side in zip(*pairs, strict=True))
            shown = " | ".join(f"{statistics.median(t):.2f} ({min(t):.2f})" for t in (before, now))
            difference = statistics.median(now) - statistics.median(before)
            print(f"| {model}, {unit} | {shown} | {difference:+.3f} ({min(now) - min(before):+.3f}) |")


def parts(work: Path, runs: int) -> None:
    """Time the checks alone, with the files in the page cache."""
    import torch

    from onmt_llm.checkpoint.directory import find_damage
    from onmt_llm.checkpoint.files.safetensors import fast_tensor_digest
    from onmt_llm.checkpoint.store import Checkpoint
    from onmt_llm.generate.ct2.model import check_release

    checkpoint = Checkpoint.open(work / "checkpoint")
    tensors = dict(checkpoint.tensors())
    steps = {
        "Checkpoint.open: the small files and the headers": lambda: Checkpoint.open(work / "checkpoint"),
        "XXH3 of all tensors in memory": lambda: [fast_tensor_digest(name, tensor) for name, tensor in tensors.items()],
        "reading all tensors, both checks included": lambda: [checkpoint.tensor(name) for name in tensors],
        "minimum and maximum of all tensors in memory": lambda: [torch.aminmax(one) for one in tensors.values()],
        "torch.isfinite of all tensors in memory (not done)": lambda: [
            torch.isfinite(tensor).all() for tensor in tensors.values()
        ],
        "check_release: all files of the release": lambda: check_release(work / "release"),
        "all files of the checkpoint, as a resumed run does": lambda: find_damage(work / "checkpoint"),
        "all files of the checkpoint, by SHA-256 too (`verify`)": lambda: find_damage(
            work / "checkpoint", thorough=True
        ),
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"\n| {size / 1e6:,.0f} MB in {len(tensors)} tensors | median s |\n|---|--:|")
    for name, step in steps.items():
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(f"| {name} | {statistics.median(times):.3f} |")


if __name__ == "__main__":
    folders, count = [Path(word).resolve() for word in sys.argv[1:3]], int(sys.argv[3]) if len(sys.argv) > 3 else 9
    compare(*folders, count)
    parts(folders[0], count)
