"""Memory and speed of each training option, and the accuracy of `-dry_run`.

`python docs/benchmarks/memory.py -model CHECKPOINT` trains a language model for a few updates on random text, each
row of the table in a separate process, and prints a Markdown table. Options: `-rows` and `-length` (shape of a batch),
`-dtype`, `-steps`, `-only WORD` (rows whose name contains it), `-layers` (that get adapters).

Memory is that of the process (RSS), Python and torch included. Two numbers are measured: memory between two updates
(weights, moments), and the kernel's high-water mark within updates, from the second one on. malloc is set to return
every larger block at once (`MALLOC_MMAP_THRESHOLD_`), so that RSS is the memory in use, not a past maximum. This costs
time, so the time is measured in a second process with malloc's defaults. The estimate is made by a separate process, as
by the command; the last column but one is the estimate for the model over the measured peak, both without the estimated
memory of the program itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import OnmtLlmError

MIB = 1 << 20
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Sections = dict[str, dict[str, Any]]


def quantised(kind: str) -> Sections:
    return {"quantization": {"quant_layers": ALL_LINEAR, "quant_type": kind}}


ROWS: dict[str, tuple[str, Sections]] = {
    "full": ("full", {}),
    "full, adafactor": ("full", {"optimizer": {"optim": "adafactor"}}),
    "full, adamw8bit": ("full", {"optimizer": {"optim": "adamw8bit"}}),
    "full, optimizer_in_backward": ("full", {"performance": {"optimizer_in_backward": True}}),
    "full, model_dtype: bf16": ("full", {"performance": {"model_dtype": "bf16"}}),
    "full, pure_bf16": ("full", {"performance": {"model_dtype": "bf16", "pure_bf16": True}}),
    "full, use_ckpting: [block]": ("full", {"performance": {"use_ckpting": ["block"]}}),
    "LoRA": ("LoRA", {}),
    "LoRA, int8": ("LoRA", quantised("int8")),
    "LoRA, bnb_8bit": ("LoRA", quantised("bnb_8bit")),
    "LoRA, bnb_NF4": ("LoRA", quantised("bnb_NF4")),
    "LoRA, use_ckpting: [mha]": ("LoRA", {"performance": {"use_ckpting": ["mha"]}}),
    "LoRA, use_ckpting: [ffn]": ("LoRA", {"performance": {"use_ckpting": ["ffn"]}}),
    "LoRA, use_ckpting: [mha, ffn]": ("LoRA", {"performance": {"use_ckpting": ["mha", "ffn"]}}),
    "LoRA, use_ckpting: [block]": ("LoRA", {"performance": {"use_ckpting": ["block"]}}),
    "LoRA, lora_dropout: 0.05": ("LoRA", {"lora": {"lora_dropout": 0.05}}),
    "LoRA, lora_dropout: 0.05, use_ckpting: [lora]": (
        "LoRA",
        {"lora": {"lora_dropout": 0.05}, "performance": {"use_ckpting": ["lora"]}},
    ),
    "LoRA, compile_blocks": ("LoRA", {"performance": {"compile_blocks": True}}),
}


@dataclass(frozen=True)
class Measured:
    """Measurements of one run, in bytes and seconds; memory of the whole process.

    Attributes:
        held: Memory between two updates.
        peak: Peak memory within updates.
        seconds: Time of an update.
    """

    held: int
    peak: int
    seconds: float


def config(args: argparse.Namespace, folder: Path, kind: str, sections: Sections) -> TrainConfig:
    """Options of one row."""
    base: Sections = {
        "corpora": {"data": {"text": {"path_src": str(folder / "text")}}},
        "batching": {
            "batch_size": args.rows,
            "packing": "wrap",
            "packing_length": args.length,
            "isolate_documents": False,
            "bucket_size": 4 * args.rows,
        },
        "optimizer": {"learning_rate": 1e-5, "max_grad_norm": 0.0},
        "run": {
            "save_model": str(folder / "m"),
            "train_steps": args.steps + 2,
            "seed": 1,
        },
        "start": {"train_from": args.model, "reset_optim": "all"},
        "performance": {"model_dtype": args.dtype},
        "logging": {"progress": "none"},
    }
    if kind == "LoRA":
        base["lora"] = {"lora_layers": args.layers, "lora_rank": 16, "lora_alpha": 32}
    return TrainConfig.model_validate(
        {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
    )


def write_text(args: argparse.Namespace, file: Path) -> None:
    """Enough words of the model's vocabulary for all batches."""
    from onmt_llm.checkpoint.store import Checkpoint

    words = [token.strip("▁Ġ") for token in Checkpoint.open(args.model).codec().vocab]
    words = [word for word in words if word.isalpha() and word.isascii()]
    lines = args.rows * (args.steps + 3)
    rng = random.Random(1)
    file.write_text("".join(" ".join(rng.choices(words, k=args.length)) + "\n" for _ in range(lines)))


def measure(file: Path, *, exact: bool) -> Measured:
    """Run the row whose options are in `file`, in a separate process."""
    return Measured(**_run_child("--row", file, {**os.environ, **(EXACT if exact else {})}))


def estimate(file: Path) -> tuple[int, int]:
    """Estimated bytes of the program itself, and of the model."""
    found = _run_child("--plan", file, dict(os.environ))
    return found["program"], found["model"]


def _run_child(mode: str, file: Path, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, mode, str(file)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise OnmtLlmError(run.stderr.strip().splitlines()[-1])
    return dict(json.loads(run.stdout.splitlines()[-1]))


class Enough(Exception):
    """Raised after the last measured update; nothing is saved."""


def run_row(file: Path) -> None:
    """Main function of the process of a row."""
    import torch

    from onmt_llm.training import loop
    from onmt_llm.training.process.host_memory import peak_memory, resident_memory
    from onmt_llm.training.train import train

    settings = TrainConfig.model_validate_json(file.read_text())
    set_learning_rate, held, times = loop.set_learning_rate, [], []

    def begin(optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Called at the start of each update."""
        times.append(time.perf_counter())
        held.append(resident_memory())
        if len(times) == 2:
            Path("/proc/self/clear_refs").write_text("5")
        if len(times) == settings.run.train_steps:
            raise Enough
        set_learning_rate(optimizer, rate)

    loop.set_learning_rate = begin
    try:
        train(settings)
    except Enough:
        peak = peak_memory("cpu")["peak_rss"]
    seconds = statistics.median(b - a for a, b in pairwise(times[1:]))
    print(json.dumps({"held": held[-1], "peak": peak, "seconds": seconds}))


def run_plan(file: Path) -> None:
    """Main function of the process of an estimate."""
    from onmt_llm.training.dry_run.plan import plan

    found = plan(TrainConfig.model_validate_json(file.read_text()))
    print(json.dumps({"program": found.program, "model": found.memory.peak}))


def row(name: str, settings: TrainConfig, folder: Path) -> str:
    """A line of the table."""
    file = folder / "row.json"
    file.write_text(settings.model_dump_json(exclude_unset=True))
    try:
        program, model = estimate(file)
        found, timed = measure(file, exact=True), measure(file, exact=False)
    except OnmtLlmError as error:
        return f"| {name} | {error.message} | | | | | | |"
    figures = [found.held, found.peak - found.held, found.peak, program, program + model]
    cells = " | ".join(f"{figure / MIB:,.0f}" for figure in figures)
    ratios = f"{(program + model) / found.peak:.2f} | {model / (found.peak - program):.2f}"
    return f"| {name} | {cells} | {ratios} | {timed.seconds:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-model")
    parser.add_argument("-rows", type=int, default=4)
    parser.add_argument("-length", type=int, default=256)
    parser.add_argument("-dtype", default="fp32")
    parser.add_argument("-steps", type=int, default=4)
    parser.add_argument("-only", default="")
    parser.add_argument("-layers", nargs="+", default=ALL_LINEAR)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        return run_row(args.row)
    if args.plan:
        return run_plan(args.plan)
    columns = ["held MiB", "more within an update", "peak", "this program", "`-dry_run`", "ratio", "of the model alone"]
    print(f"| run | {' | '.join(columns)} | s per update |")
    print(f"|---|{'--:|' * len(columns)}--:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(args, folder / "text")
        for label, (kind, sections) in ROWS.items():
            if args.only in label:
                print(row(label, config(args, folder, kind, sections), folder), flush=True)


if __name__ == "__main__":
    main()
