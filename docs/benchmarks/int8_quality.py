"""What int8 releases of a language model lose, by quality: divergence from the model, size, an answer, speed.

    python docs/benchmarks/int8_quality.py CHECKPOINT TEXT WORK [TOKENS]

The first half of TEXT is for calibration, the second for the comparison (default: 6,144 tokens). The releases are made
in WORK, or taken from there. Run it again with `MKL_ENABLE_INSTRUCTIONS=AVX2` (Intel) or `CT2_USE_MKL=0
ONEDNN_MAX_CPU_ISA=AVX2` to see what processors without VNNI compute.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from pathlib import Path

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.ct2.generator import Ct2Generator
from onmt_llm.releasing import NumberFormat, release
from onmt_llm.releasing.verify import Reference

QUESTION = "The capital of France is"


def number_formats(calibration: str) -> dict[str, tuple[NumberFormat, str]]:
    """The releases, and what CTranslate2 computes them in."""
    down = ("down_proj",)
    return {
        "float32": (NumberFormat("float32"), "float32"),
        "CTranslate2's own int8": (NumberFormat("float32"), "int8"),
        "plain": (NumberFormat("int8", "plain"), "int8"),
        "rotated (default)": (NumberFormat("int8", "rotated"), "int8"),
        "calibrated": (NumberFormat("int8", "calibrated", calibration), "int8"),
        "rotated, down_proj float": (NumberFormat("int8", "rotated", keep_float=down), "int8"),
        "calibrated, down_proj float": (NumberFormat("int8", "calibrated", calibration, keep_float=down), "int8"),
    }


def released(model: Path, work: Path, numbers: NumberFormat) -> Path:
    directory = work / "-".join(filter(None, [numbers.quantization, numbers.quality, *numbers.keep_float]))
    if not directory.exists():
        release(model, directory, quantization=numbers, verify="off")
    return directory


def speeds(releases: dict[str, tuple[Path, str]], window: list[str], rounds: int = 3) -> None:
    """Print tokens per second of CPU time on one thread, decoded one by one and read at once: the best of all rounds,
    in which the releases alternate."""
    options = GenerationConfig(max_length=64, min_length=64)
    engines = {
        name: Ct2Generator.open(directory, device="cpu", compute_type=compute_type, threads=1)
        for name, (directory, compute_type) in releases.items()
    }
    best = dict.fromkeys(engines, (math.inf, math.inf))
    for _ in range(rounds):
        for name, engine in engines.items():
            start = time.process_time()
            engine.generate([window[:8]], options)
            middle = time.process_time()
            engine.logits(window)
            decode, read = best[name]
            best[name] = min(decode, middle - start), min(read, time.process_time() - middle)
    print("\n| release | decode | prefill |\n|---|--:|--:|")
    for name, (decode, read) in best.items():
        print(f"| {name} | {64 / decode:.1f} | {len(window) / read:.0f} |")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    kinds = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    limits = [f"{key}={os.environ[key]}" for key in sorted(os.environ) if key.endswith(("_ISA", "_INSTRUCTIONS"))]
    return f"{name} ({', '.join(kinds)}) {' '.join(limits)}"


def main(model: Path, text_file: Path, work: Path, tokens: int) -> None:
    text = text_file.read_text(encoding="utf-8")
    half = len(text) // 2
    checkpoint = Checkpoint.open(model)
    codec = checkpoint.codec()
    reference = Reference(checkpoint, codec.decode(codec.encode(text[half : half + 8 * tokens])[:tokens]))
    print(f"{processor()}; {sum(map(len, reference.windows))} tokens\n")
    print("| release | mean KL | top-1 % | perplexity ratio | MB | answer |")
    print("|---|--:|--:|--:|--:|---|")
    releases = {}
    for name, (numbers, compute_type) in number_formats(text[:half]).items():
        directory = released(model, work, numbers)
        figures = reference.compare(directory, numbers.quantization or "", compute_type).figures()
        engine = Ct2Generator.open(directory, device="cpu", compute_type=compute_type, threads=1)
        releases[name] = directory, compute_type
        prompt = engine.codec.encode(QUESTION)
        answer = engine.codec.decode(engine.generate([prompt], GenerationConfig(max_length=16))[0][0].tokens)
        print(
            f"| {name} | {figures['mean_kl']:.4f} | {100 * figures['top1_agreement']:.1f} | "
            f"{figures['perplexity_ratio']:.4f} | {(directory / 'model.bin').stat().st_size / 1e6:.0f} | "
            f"{' '.join(answer.split())} |",
            flush=True,
        )
    speeds(releases, reference.windows[0])


if __name__ == "__main__":
    paths = [Path(word) for word in sys.argv[1:4]]
    main(*paths, int(sys.argv[4]) if len(sys.argv) > 4 else 6144)
