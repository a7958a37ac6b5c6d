"""Translating a file: OpenNMT-py, our torch engine and CTranslate2 int8, in sentences per second of CPU time.

    ONMT_PY_PYTHON=PYTHON python docs/benchmarks/translation.py WORK [LINES [ROUNDS]]

One model with random weights runs in all programs: 3 + 3 layers, width 256, 8,000 tokens, beam 5. Random answers run to
their limit (1.25 times the source plus 5), so all programs compute about as many tokens. Each is a command with one
thread; from the CPU time of each the time for one line (start and loading) is subtracted. The programs alternate, and
the medians of all rounds are printed. PYTHON is an interpreter with OpenNMT-py 3.5.1; without it only ours run.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.transformer import Transformer

TOKENS = 8000
MODEL = ModelConfig(
    vocab_size=TOKENS, hidden_size=256, heads=8, ffn_size=1024, encoder_layers=3, decoder_layers=3, activation="relu"
)
SEARCH = ["-beam_size", "5", "-batch_size", "30", "-max_length", "250"]
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


def make(work: Path, lines: int) -> None:
    """The model in the formats of all programs, and the sources."""
    work.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    words = [f"w{number}" for number in range(TOKENS - 4)]
    sources = [" ".join(draw.choices(words, k=draw.randint(8, 40))) for _ in range(lines)]
    (work / "src").write_text("".join(f"{line}\n" for line in sources))
    (work / "one").write_text(f"{sources[0]}\n")
    if (work / "torch").exists():
        return
    torch.manual_seed(1)
    with CheckpointWriter(work / "torch", CheckpointConfig(model=MODEL)) as writer:
        for name, parameter in Transformer(MODEL).named_parameters():
            writer.add(name, parameter.detach())
        vocab = ["<unk>", "<blank>", "<s>", "</s>", *words]
        writer.add_text("vocab.txt", "".join(f"{token}\n" for token in vocab))
    python = [sys.executable, "-m"]
    run([*python, "onmt_llm.cli.release", "-model", "torch", "-output", "ct2", "-quantization", "int8"], work)
    run([*python, "onmt_llm.cli.convert", "-model_dir", "torch", "-to", "opennmt", "-output", "model.pt"], work)


def programs() -> dict[str, list[str]]:
    """The beginning of each program's command."""
    ours = [sys.executable, "-m", "onmt_llm.cli.translate", "-device", "cpu", "-threads", "1"]
    found = {
        "torch": [*ours, "-model", "torch"],
        "torch bf16": [*ours, "-model", "torch", "-precision", "bf16"],
        "CTranslate2 int8": [*ours, "-model", "ct2"],
    }
    if python := os.environ.get("ONMT_PY_PYTHON"):
        found["OpenNMT-py"] = [
            python,
            "-m",
            "onmt.bin.translate",
            "-model",
            "model.pt",
            "-gpu",
            "-1",
            "-world_size",
            "0",
        ]
    return found


def run(command: list[str], work: Path) -> float:
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=work, env={**os.environ, **THREADS}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(work: Path, lines: int, rounds: int) -> None:
    make(work, lines)
    rates: dict[str, list[float]] = {name: [] for name in programs()}
    for number in range(rounds):
        for name, command in programs().items():
            one, all_ = (
                run([*command, *SEARCH, "-src", file, "-output", f"{name}.out"], work) for file in ("one", "src")
            )
            words = len((work / f"{name}.out").read_text().split())
            rates[name].append((lines - 1) / (all_ - one))
            print(f"round {number + 1}: {name}: {rates[name][-1]:.1f} sentences/s, {words} words", flush=True)
    for name, found in rates.items():
        ratio = statistics.median(found) / statistics.median(rates.get("OpenNMT-py", found))
        print(f"{name}: {statistics.median(found):.1f} sentences per CPU second, {ratio:.2f} times OpenNMT-py")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[2:]]
    main(Path(sys.argv[1]), *[*given, *(300, 3)[len(given) :]])
