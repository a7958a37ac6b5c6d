"""Answering a file in chunks: memory, the cost of chunks, and a run that is killed and resumed.

    python docs/benchmarks/translation_files.py WORK [LINES ...]

A tiny encoder-decoder (two layers, width 32) and its CTranslate2 release. First 2,000 lines: killed (SIGKILL) when
1,000 are done, run again, compared with an uninterrupted run. Then files of LINES lines (20,000 and 200,000) in
batches of 256, each in a process of its own: CPU time per line and peak memory.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import tiny


def write_source(path: Path, lines: int) -> Path:
    draw = random.Random(1)
    with path.open("w") as file:
        for _ in range(lines):
            file.write(" ".join(f"w{draw.randint(0, 20)}" for _ in range(draw.randint(1, 12))) + "\n")
    return path


def command(source: str, output: str, *words: str, model: str = "model") -> list[str]:
    options = ["-device", "cpu", "-threads", "1", "-max_length", "4", *words]
    return [
        sys.executable,
        "-m",
        "onmt_llm.cli.translate",
        "-model",
        model,
        "-src",
        source,
        "-output",
        output,
        *options,
    ]


def measure(work: Path, lines: int, model: str) -> None:
    """CPU time and peak memory of one process."""
    source = write_source(work / f"src{lines}", lines).name
    process = subprocess.Popen(command(source, f"{model}{lines}", "-batch_size", "256", model=model), cwd=work)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    seconds = used.ru_utime + used.ru_stime
    cost = f"{seconds:.1f} CPU s, {1e3 * seconds / lines:.2f} ms a line, {used.ru_maxrss / 1024:.0f} MiB"
    print(f"{model}, {lines:,} lines: {cost}", flush=True)


def kill_and_resume(work: Path, lines: int = 2000, kill_at: int = 1000) -> None:
    """Kill a run when so many lines are done, and run it again."""
    source = write_source(work / "src", lines).name
    subprocess.run(command(source, "whole"), cwd=work, check=True)
    process = subprocess.Popen(command(source, "parts"), cwd=work)
    record, done = work / "parts.partial.json", 0
    while done < kill_at and process.poll() is None:
        time.sleep(0.001)
        if record.exists():
            done = json.loads(record.read_text())["state"].get("totals", {}).get("lines", 0)
    process.send_signal(signal.SIGKILL)
    code, exists = process.wait(), (work / "parts").exists()
    print(f"exit {code} with {done} of {lines} lines done; a file under its name: {exists}")
    subprocess.run(command(source, "parts"), cwd=work, check=True)
    same = (work / "parts").read_bytes() == (work / "whole").read_bytes()
    print(f"after the same command: identical to the uninterrupted file: {same}; left: {[*work.glob('parts.*')]}")


def main(work: Path, sizes: list[int]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model").exists():
        tiny.write_checkpoint(work / "model", tiny.seq2seq())
        release = ["-model", "model", "-format", "ctranslate2", "-verify", "off", "-output", "release"]
        subprocess.run([sys.executable, "-m", "onmt_llm.cli.release", *release], cwd=work, check=True)
    kill_and_resume(work)
    for lines in sizes:
        for model in ("model", "release"):
            measure(work, lines, model)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or [20_000, 200_000])
